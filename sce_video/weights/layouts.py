"""Convert the key names of backbones between programs, as pure functions over names.

Our networks use "plain backbone keys": those of the library that builds them, pytorchvideo's also for r3d18
(`blocks.0.conv.weight`, `blocks.1.res_blocks.0.branch2.conv_a.weight`), torchvision's for r2plus1d18 (`stem.0.weight`).
Files differ in three ways:

| what      | known                                                                                          |
|-----------|------------------------------------------------------------------------------------------------|
| wrapper   | `method` (ours), `state_dict` (Lightning), `model_state` (pytorchvideo, SlowFast), `model` and    |
|           | others of WRAPPERS, which is also the order of choice                                          |
| prefix    | `online.backbone.` (ours), `trunk.model.` and `trunk.` (eztorch, the reference), `backbone.`     |
|           | (SlowFast's contrastive models), `model.`, none; all after DDP's or AveragedModel's `module.`    |
|           | and torch.compile's `_orig_mod.`, which may stand anywhere                                       |
| names     | `blocks.N` (pytorchvideo), `sN.pathway0_` (SlowFast); torchvision's: `stem.`, `conv1.`, `layerN.` |
|           | (its ResNets), `features.` (S3D), `conv_proj.` (MViT), `patch_embed.` (Swin)                     |

The momentum branches (`target.`, `momentum_trunk.`, `backbone_hist.`) never match: only the online network is read.
No key is dropped silently: those outside the backbone (heads, projector, queue, transforms) are listed as ignored, and an
unknown backbone key keeps its name, so loading it into our network fails.

Sources: names of pytorchvideo 0.1.5, torchvision, and SlowFast's resnet_helper.py, stem_helper.py, contrastive.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]

# Averaged weights come after trained ones: a file that holds both gives the trained ones, unless its reader names a key.
WRAPPERS = (
    *("method", "state_dict", "model_state", "model_state_dict", "model", "module", "net", "network", "encoder"),
    *("student", "teacher", "model_ema", "ema", "ema_state_dict", "state_dict_ema", "averaged_model"),
)
PREFIXES = ("online.backbone.", "trunk.model.", "trunk.", "backbone.", "model.", "")
PROJECTOR_PREFIXES = ("online.projector.", "projector.")
OURS = "sce_video"
# Layout -> how the keys of its backbone and head begin, and how those of the classifier, which is ignored, begin.
_BODY = {
    "mvit": r"(conv_proj|pos_encoding|blocks|norm)\.",
    "swin3d": r"(patch_embed|features|norm)\.",
    "s3d": r"features\.",
    "pytorchvideo": r"blocks\.\d+\.",
    "slowfast": r"s\d",
    "torchvision": r"stem\.\d|layer\d\.|(conv|bn)1\.",
}
_HEAD = {
    **{"mvit": r"head\.", "swin3d": r"head\.", "s3d": r"classifier\."},
    **{"pytorchvideo": r"blocks\.\d+\.(proj|pool)\.", "slowfast": r"head\.", "torchvision": r"fc\."},
}
_STARTS = {  # MViT has blocks too, Swin features
    **{"mvit": "conv_proj.", "swin3d": "patch_embed.proj.", "s3d": "features.0.0."},
    **{"pytorchvideo": "blocks.0.", "slowfast": "s1.pathway0_stem.", "torchvision": "stem.0."},
}
# Parts of a basic or bottleneck residual block: SlowFast's name -> ours.
_PARTS = {"branch1": "branch1_conv", "branch1_bn": "branch1_norm"} | {
    f"branch2.{letter}{end}": f"branch2.{name}_{letter}" for letter in "abc" for end, name in (("", "conv"), ("_bn", "norm"))
}
_PARTS_BACK = {ours: theirs for theirs, ours in _PARTS.items()}
_STEM = {"conv": "conv", "bn": "norm"}
_STEM_BACK = {ours: theirs for theirs, ours in _STEM.items()}


class Found(NamedTuple):
    """A backbone in a state dict.

    layout: sce_video (ours), pytorchvideo, slowfast, torchvision (its ResNets), s3d, mvit or swin3d. prefix: of every
    backbone key in the file.
    backbone: with plain keys. ignored: the other tensors' keys, as in the file.
    """

    layout: str
    prefix: str
    backbone: Tensors
    ignored: list[str]


def unwrap(container: Any, key: str = "") -> Tensors:
    """Return the tensors by name, without wrappers, `module.` and `_orig_mod.`; empty if there are none.

    key: dotted path of the wrapper to take, e.g. `model.ema`. Raises KeyError with the keys that are there if it is missing.
    """
    for name in key.split(".") if key else ():
        if not isinstance(container, dict) or name not in container:
            raise KeyError(list(container) if isinstance(container, dict) else [])
        container = container[name]
    while isinstance(container, dict):
        inner = [container[name] for name in WRAPPERS if isinstance(container.get(name), dict)]
        if not inner:
            break
        container = inner[0]
    if not isinstance(container, dict):
        return {}
    tensors = {name: value for name, value in container.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
    counter = tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    elif counter is not None:
        tensors["n_averaged"] = counter
    return tensors


def to_backbone(tensors: Tensors) -> Found | None:
    """Return the backbone with plain keys, or None for an unknown layout. Tries PREFIXES in order."""
    for prefix in PREFIXES:
        inside = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        layout = OURS if inside and prefix == PREFIXES[0] else _find_layout(inside)
        if layout is None:
            continue
        backbone = {_to_plain(key, layout): value for key, value in inside.items() if _is_backbone_key(key, layout)}
        kept = {prefix + key for key in inside if _is_backbone_key(key, layout)}
        return Found(layout, prefix, backbone, [key for key in tensors if key not in kept])
    return None


def from_backbone(backbone: Tensors, layout: str) -> Tensors:
    """Rename a backbone's plain keys to those of `layout`: the inverse of to_backbone, without a head.

    layout: sce_video (with its prefix), pytorchvideo, slowfast or torchvision. Raises ValueError for another layout, and
    for a key without a name in the layout.
    """
    rename: dict[str, Callable[[str], str | None]] = {
        OURS: lambda key: PREFIXES[0] + key,
        "pytorchvideo": lambda key: key if re.match(_BODY["pytorchvideo"], key) else None,
        "slowfast": _to_slowfast,
        "torchvision": lambda key: key if re.match(_BODY["torchvision"], key) else None,
    }
    if layout not in rename:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(rename)}")
    result = {}
    for key, value in backbone.items():
        name = rename[layout](key)
        if name is None:
            raise ValueError(f"the {layout} layout has no name for {key}")
        result[name] = value
    return result


def to_projector(tensors: Tensors) -> Tensors | None:
    """Return the online projector with keys `layers.N...`, or None. PROJECTOR_PREFIXES: ours and eztorch's."""
    for prefix in PROJECTOR_PREFIXES:
        found = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix + "layers.")}
        if found:
            return found
    return None


def _find_layout(keys: Tensors) -> str | None:
    # Networks like tiny3d begin with a block without tensors.
    for table in (_STARTS, {"pytorchvideo": "blocks.1.", "torchvision": "conv1."}):
        for layout, start in table.items():
            if any(key.startswith(start) for key in keys):
                return layout
    return None


def _is_backbone_key(key: str, layout: str) -> bool:
    return layout == OURS or bool(re.match(_BODY[layout], key) and not re.match(_HEAD[layout], key))


def _to_plain(key: str, layout: str) -> str:
    return _from_slowfast(key) or key if layout == "slowfast" else key


def _from_slowfast(key: str) -> str | None:
    stem = re.fullmatch(r"s1\.pathway0_stem\.(conv|bn)\.(\w+)", key)
    if stem:
        return f"blocks.0.{_STEM[stem[1]]}.{stem[2]}"
    block = re.fullmatch(r"s([2-5])\.pathway0_res(\d+)\.(branch1|branch1_bn|branch2\.[abc](?:_bn)?)\.(\w+)", key)
    if block:
        return f"blocks.{int(block[1]) - 1}.res_blocks.{block[2]}.{_PARTS[block[3]]}.{block[4]}"
    return None


def _to_slowfast(key: str) -> str | None:
    stem = re.fullmatch(r"blocks\.0\.(conv|norm)\.(\w+)", key)
    if stem:
        return f"s1.pathway0_stem.{_STEM_BACK[stem[1]]}.{stem[2]}"
    pattern = r"blocks\.([1-4])\.res_blocks\.(\d+)\.(branch1_conv|branch1_norm|branch2\.(?:conv|norm)_[abc])\.(\w+)"
    block = re.fullmatch(pattern, key)
    if block:
        return f"s{int(block[1]) + 1}.pathway0_res{block[2]}.{_PARTS_BACK[block[3]]}.{block[4]}"
    return None
