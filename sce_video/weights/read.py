"""Read the tensors of a run folder, checkpoint folder or weight file, and the description of its encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..runs.checkpoint import find, load
from . import files, layouts

DESCRIPTION = "sce_video"  # metadata key in our safetensors files: a JSON description of the encoder


class Contents(NamedTuple):
    """Unwrapped tensors by name, and the encoder's description.

    about: backbone, mean, std, num_frames, clip_seconds, size; None for a weight file without a description.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any] | None
    parts: list[str] = []  # top-level keys of a weight file


def _choose_branch(path: str | Path, tensors: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    """Return the tensors with those of a run's target encoder under the names of the online one, if that is the branch."""
    if branch != "target":
        return tensors
    found = {f"online.{key.removeprefix('target.')}": value for key, value in tensors.items() if key.startswith("target.")}
    if not found:
        raise InputError(f"weights.branch=target: {path} holds no target encoder, only what its method trains: leave it out")
    return found


def read(path: str | Path, key: str = "", branch: str = "auto") -> Contents:
    """Return the contents of a run folder, a checkpoint folder or a weight file (see files.py for the formats).

    key: the part of a weight file to take, see `layouts.unwrap`. branch: `online`, `target`, or `auto`, which is the one that a
    run's method states. Raises InputError if it is missing, damaged, or cannot be
    read safely.
    """
    if Path(path).is_file():
        file = files.read(path)
        parts = [name for name in file.content if isinstance(name, str)] if isinstance(file.content, dict) else []
        try:
            tensors = _choose_branch(path, layouts.unwrap(file.content, key), branch)
            return Contents(tensors, _read_description(path, file.metadata), parts)
        except KeyError as error:
            raise InputError(f"weights.key={key}: {path} has no such key, it has {error.args[0][:8]}") from error
    state, meta = load(find(path))
    branch = meta.get("branch", "online") if branch == "auto" else branch
    return Contents(_choose_branch(path, layouts.unwrap(state), branch), meta.get("encoder"))


def _read_description(path: str | Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    if DESCRIPTION not in metadata:
        return None
    try:
        about = json.loads(metadata[DESCRIPTION])
        return {
            "backbone": str(about["backbone"]),
            **{name: float(about[name]) for name in ("mean", "std", "clip_seconds")},
            **{name: int(about[name]) for name in ("num_frames", "size")},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its {DESCRIPTION} metadata does not describe an encoder ({error!r})") from error


def find_backbone(path: str | Path, contents: Contents) -> layouts.Found:
    """Return the backbone in `contents`, read from `path`. Raises InputError for an unknown layout."""
    found = layouts.to_backbone(contents.tensors)
    if found is None:
        begin = sorted({key.split(".")[0] for key in contents.tensors})[:8]
        parts = "" if begin or not contents.parts else f" (its top-level keys are {contents.parts[:12]}: weights.key= takes one)"
        raise InputError(
            f"no backbone in {path}: its keys begin with {begin}{parts}; supported are the prefixes "
            f"{', '.join(p for p in layouts.PREFIXES if p)} or none, before pytorchvideo's, SlowFast's or torchvision's names"
        )
    return found


def read_backbone(path: str | Path) -> dict[str, Tensor]:
    """Return the backbone's state dict with plain keys (`blocks.0.conv.weight`, ...), on the CPU.

    path: a run folder, a checkpoint folder, or a weight file: torch.save's (both formats) or safetensors. See layouts
    for the supported wrappers, prefixes and names. A classifier's weights are ignored.

    Raises InputError if it holds no backbone.
    """
    return find_backbone(path, read(path)).backbone


def read_projector(path: str | Path) -> dict[str, Tensor] | None:
    """Return the online projector's state dict (`layers.0.weight`, ...), or None. Reads our files and the reference's."""
    return layouts.to_projector(read(path).tensors)
