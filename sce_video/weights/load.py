"""Load a frozen encoder from a run folder, a checkpoint folder or a weight file.

Run folders and our safetensors files name their network. For other weight files, key names and tensor shapes select one of
BACKBONES; shapes do not show strides, so name the backbone where two fit. A file that fills only a part of the backbone, or
holds blocks beyond it (a deeper network), is refused.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, printable
from ..models import backbones
from ..models.encoder import MLP, Classifier, FrozenEncoder
from ..runs import checkpoint
from . import layouts, read

# Defaults for a weight file without a description: SCE's normalisation and clip length.
USUAL: dict[str, Any] = {"mean": 0.45, "std": 0.225, "num_frames": 8, "clip_seconds": 2.56, "size": 224}
OF_IMAGES = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_frames": 1, "clip_seconds": 0.0}  # ImageNet's


class Fit(NamedTuple):
    """How the tensors of a file fit a backbone: `matched` of `total`, and the keys that do not fit.

    missing: not in the file; differing: of another shape; unexpected: in the file, but not in this backbone.
    """

    matched: int
    total: int
    missing: list[str]
    differing: list[str]
    unexpected: list[str]

    @property
    def whole(self) -> bool:
        """Whether the file fills every tensor and holds no unexpected one."""
        return not (self.missing or self.differing or self.unexpected)


def fit(weights: dict[str, Tensor], network: nn.Module) -> Fit:
    """Compare weights with plain keys to a network. Batch norms' step counters are unused and may be missing."""
    expected = network.state_dict()
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
    differing = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    unexpected = [key for key in weights if key not in expected]
    matched = sum(key in weights for key in expected) - len(differing)
    return Fit(matched, len(expected), missing, differing, unexpected)


def load_encoder(
    path: str | Path, backbone: str | None = None, *, trust: bool = False, key: str = "", branch: str = "auto"
) -> FrozenEncoder:
    """Return the encoder of a run folder, checkpoint folder or weight file, in evaluation mode on the CPU.

    It maps uint8 or float (0..1) clips [B, 3, T, H, W] to features [B, width]. Its `report` lists the loaded and the ignored
    tensors in one line. See layouts for the supported weight files. `backbone` names the network if neither the file's
    description nor its shapes do. Without a description, SCE's normalisation and clip length are used. `trust` allows the
    description to name a network of other code, which is imported and called; without it, only built-in networks load.
    `key` names the part of a weight file to take, e.g. `ema` (option `weights.key`);
    `branch` the encoder of a run: `online`, `target` (its moving average), or `auto`, which is what its method states.

    Raises InputError for a missing file, an unknown layout, another architecture, an incomplete network, or weights that are
    not finite.
    """
    contents = read.read(path, key, branch)
    found = read.find_backbone(path, contents)
    about = contents.about or {}
    name = choose_backbone(path, about.get("backbone"), backbone, trust=trust) or recognise(path, found)
    network, width = backbones.build(name)
    fitting = fit(found.backbone, network)
    if not fitting.whole:
        raise InputError(_explain_misfit(path, found, name, fitting, network))
    _require_finite(path, found.backbone)
    network.load_state_dict(found.backbone, strict=False)
    projector, note = _load_projector(contents.tensors, width)
    ignored = [key for key in found.ignored if not (projector and key.startswith(layouts.PROJECTOR_PREFIXES))]
    about = {**usual(name), **about}
    return FrozenEncoder(
        network,
        name,
        mean=about["mean"],
        std=about["std"],
        clip={key: about[key] for key in ("num_frames", "clip_seconds", "size")},
        projector=projector,
        report=f"{path}: {fitting.matched} of {fitting.total} tensors of {name}, {_describe_layout(found)}; {note}; "
        f"{_describe_ignored(ignored)}",
    )


def usual(backbone: str) -> dict[str, Any]:
    """Return the defaults of a weight file without a description: normalisation; frames, seconds and size of clips."""
    return {**USUAL, **(OF_IMAGES if backbone in backbones.IMAGE_BACKBONES else {})}


def untrained_encoder(backbone: str, *, seed: int, mean: Any, std: Any, clip: dict[str, float]) -> FrozenEncoder:
    """Return an encoder with random weights, the baseline of every table."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, _ = backbones.build(backbone)
    return FrozenEncoder(network, backbone, mean=mean, std=std, clip=clip)


def untrained_like(encoder: FrozenEncoder, *, seed: int) -> FrozenEncoder:
    """Return the same network as `encoder`, including its projector, with random weights."""
    twin = untrained_encoder(encoder.name, seed=seed, mean=encoder.mean, std=encoder.std, clip=encoder.clip)
    if encoder.projector is not None:
        twin.projector = copy.deepcopy(encoder.projector)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in twin.projector.modules():
                if isinstance(module, (nn.Linear, nn.BatchNorm1d)):
                    module.reset_parameters()
    return twin


def load_classifier(path: str | Path, *, trust: bool = False) -> tuple[FrozenEncoder, list[str]]:
    """Return the classifier of a run of tools/finetune.py, in evaluation mode on the CPU, and its class names.

    path: the run folder (its last weights), `<run>/best`, or a checkpoint folder. The module maps uint8 or float (0..1)
    clips [B, 3, T, H, W] to logits [B, classes]; `clip` holds the length and size of its training clips. trust: see
    `load_encoder`.

    Raises InputError for a run without classes, and as `load_encoder` does.
    """
    state, meta = checkpoint.load(checkpoint.find(path))
    if "classes" not in meta:
        raise InputError(f"{path} was not trained with labels: use load_encoder, or train a classifier with tools/finetune.py")
    about = meta["encoder"]
    network, width = backbones.build(str(choose_backbone(path, about["backbone"], None, trust=trust)))
    _require_finite(path, state["method"])
    classifier = Classifier(network, width, len(meta["classes"]), dropout=0.0)
    classifier.load_state_dict(state["method"])
    clip = {key: about[key] for key in ("num_frames", "clip_seconds", "size")}
    frozen = FrozenEncoder(classifier, about["backbone"], mean=about["mean"], std=about["std"], clip=clip)
    return frozen, meta["classes"]


def recognise(path: str | Path, found: layouts.Found) -> str:
    """Return the name in BACKBONES that the weights fit. Raises InputError with the closest name if none fits."""
    closest, most = "", Fit(0, 1, [], [], [])
    for name in backbones.BACKBONES:
        fitting = fit(found.backbone, _build_on_meta(name))
        if fitting.whole:
            return name
        if fitting.matched / fitting.total > most.matched / most.total:
            closest, most = name, fitting
    nearest = f"; closest is {closest} ({_describe_misfit(found, closest, most, _build_on_meta(closest))})" if closest else ""
    raise InputError(
        f"{path} {_describe_content(found)}, which fits none of our backbones{nearest}. If it is a network of your own, say "
        "which network it is for: backbone=module:function"
    )


def _require_finite(path: str | Path, weights: dict[str, Tensor]) -> None:
    if bad := checkpoint.not_finite(weights):
        raise InputError(
            f"{path}: {len(bad)} of {len(weights)} weights and statistics are not finite, e.g. {bad[0]}: training had "
            "diverged before they were saved; take an earlier checkpoint"
        )


def choose_backbone(path: str | Path, described: str | None, given: str | None, *, trust: bool) -> str | None:
    """Return the given or the described name of a network. Raises InputError if both differ, or if the described one is
    foreign code that is neither given nor trusted.
    """
    if described and given and described != given:
        raise InputError(f"{path} holds {described}, not backbone={given}: leave backbone= out, or give another file")
    if described and described not in backbones.BACKBONES and not given and not trust:
        # A downloaded file or run folder must not choose which module is imported and called.
        raise InputError(
            f"{path} is for {described!r}, which is not ours: if you trust it, add trust=true (it is imported and called)"
        )
    return given or described


def _build_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return backbones.build(name)[0]


def _describe_layout(found: layouts.Found) -> str:
    return f"{found.layout} layout" + (f" under {found.prefix}" if found.prefix else "")


def _describe_content(found: layouts.Found) -> str:
    key = next((key for key, value in found.backbone.items() if value.ndim > 1), next(iter(found.backbone)))
    return f"holds a network in {_describe_layout(found)} ({key} {list(found.backbone[key].shape)})"


def _describe_misfit(found: layouts.Found, name: str, fitting: Fit, network: nn.Module) -> str:
    parts = [f"fills {fitting.matched} of {fitting.total} tensors of {name}"]
    if fitting.differing:
        key = fitting.differing[0]
        expected, shape = list(network.state_dict()[key].shape), list(found.backbone[key].shape)
        parts.append(f"{name} expects {key} {expected}, found {shape}")
    if fitting.missing:
        parts.append(f"missing e.g. {fitting.missing[0]}")
    if fitting.unexpected:
        parts.append(f"left over e.g. {fitting.unexpected[0]}")
    return "; ".join(parts)


def _explain_misfit(path: str | Path, found: layouts.Found, name: str, fitting: Fit, network: nn.Module) -> str:
    message = f"{path} {_describe_content(found)}: {_describe_misfit(found, name, fitting, network)}"
    for other in backbones.BACKBONES:
        if other != name and fit(found.backbone, _build_on_meta(other)).whole:
            return f"{message}. It is a whole {other}: backbone={other}"
    return message


def _load_projector(tensors: dict[str, Tensor], width: int) -> tuple[MLP | None, str]:
    weights = layouts.to_projector(tensors)
    if weights is None:
        return None, "no projector"
    linear = {int(key.split(".")[1]): value for key, value in weights.items() if value.ndim == 2}
    if linear:
        shapes = [linear[index].shape for index in sorted(linear)]
        widths = [shapes[0][1], *(shape[0] for shape in shapes)]
        projector = MLP(widths, last_norm=f"layers.{max(linear) + 1}.running_mean" in weights)
        if widths[0] == width and fit(weights, projector).whole:
            projector.load_state_dict(weights, strict=False)
            return projector, f"projector {' -> '.join(map(str, widths))}"
    return None, "a projector of another kind left out"


def _describe_ignored(keys: list[str]) -> str:
    kinds = Counter(".".join(key.split(".")[:2]) if key.startswith("online.") else key.split(".")[0] for key in keys)
    if not kinds:
        return "nothing ignored"
    counts = ", ".join(f"{printable(kind)} {count}" for kind, count in kinds.items())
    return f"{len(keys)} other tensors ignored ({counts})"
