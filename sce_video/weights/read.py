"""The tensors of a run folder, a checkpoint folder or a weight file, and the description of its encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..runs.checkpoint import find, load
from . import files, layouts

DESCRIPTION = "sce_video"  # key of the metadata in our safetensors files: JSON that says what the encoder is


class Contents(NamedTuple):
    """What a checkpoint holds for use: its tensors by name, unwrapped, and the encoder's description where it has one.

    about: backbone, mean, std, num_frames, clip_seconds, size; None for a weight file that does not say.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any] | None


def read(path: str | Path) -> Contents:
    """Return the contents of a run folder, a checkpoint folder or a weight file of any kind that weight_files reads.

    Raises InputError for no checkpoint or no weight file, a damaged one, or one that cannot be read safely.
    """
    if Path(path).is_file():
        file = files.read(path)
        return Contents(layouts.unwrap(file.content), _description(path, file.metadata))
    state, meta = load(find(path))
    return Contents(layouts.unwrap(state), meta.get("encoder"))


def _description(path: str | Path, metadata: dict[str, str]) -> dict[str, Any] | None:
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


def found_backbone(path: str | Path, tensors: dict[str, Tensor]) -> layouts.Found:
    """Return the backbone in `tensors`, read from `path`. Raises InputError if no layout that we know is in them."""
    found = layouts.to_backbone(tensors)
    if found is None:
        begin = sorted({key.split(".")[0] for key in tensors})[:8]
        raise InputError(
            f"no backbone in {path}: its keys begin with {begin}; known are {', '.join(p for p in layouts.PREFIXES if p)} "
            "or nothing, then pytorchvideo's, SlowFast's or torchvision's names"
        )
    return found


def read_backbone(path: str | Path) -> dict[str, Tensor]:
    """Return the backbone's state dict with plain keys (`blocks.0.conv.weight`, ...), on the CPU.

    path: a run folder, a checkpoint folder, or a weight file: torch.save's (both formats) or safetensors. See layouts
    for the wrappers, prefixes and names that are known; a classifier's weights are left out.

    Raises InputError if there is no backbone in it.
    """
    return found_backbone(path, read(path).tensors).backbone


def read_projector(path: str | Path) -> dict[str, Tensor] | None:
    """Return the online projector's state dict (`layers.0.weight`, ...), ours or the reference's; None without one."""
    return layouts.to_projector(read(path).tensors)
