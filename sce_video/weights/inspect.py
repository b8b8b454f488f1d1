"""Show the contents of a checkpoint: its digest, and a table of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError, printable
from ..runs import checkpoint
from . import files


def read_state(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return the state and metadata of a run folder's newest checkpoint, a checkpoint folder or a weight file.

    Raises InputError if it is missing, damaged, or not safe to read.
    """
    if Path(path).is_file():
        file = files.read(path)
        return file.content, dict(file.metadata)
    return checkpoint.load(checkpoint.find(path))


def digest(path: str | Path) -> str:
    """Return the SHA-256 of the state (see `checkpoint.state_digest`)."""
    return checkpoint.state_digest(read_state(path)[0])


def describe(path: str | Path) -> str:
    """Return lines that list a run's checkpoints and damage, then metadata and tensors of the newest intact one."""
    lines, shown = [], None
    for folder in [] if Path(path).is_file() else list_checkpoints(Path(path)):
        try:
            loaded = checkpoint.load(folder)
            lines.append(f"{folder}: whole, {(folder / 'state.pt').stat().st_size / 1e6:.1f} MB")
            shown = shown or loaded
        except InputError as error:
            lines.append(str(error))
    state, meta = shown or read_state(path)
    lines += [f"{name}: {value}" for name, value in meta.items()]
    tensors = [(name.lstrip("/"), value) for name, value in checkpoint.leaves("", state) if isinstance(value, Tensor)]
    width = max((len(name) for name, _ in tensors), default=0)
    lines += [f"{name:<{width}}  {str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in tensors]
    size = sum(value.numel() * value.element_size() for _, value in tensors)
    lines = [printable(line) for line in lines]
    return "\n".join([*lines, f"{len(tensors)} tensors, {size / 1e6:.1f} MB", f"digest {checkpoint.state_digest(state)}"])


def list_checkpoints(path: Path) -> list[Path]:
    """Return all checkpoints of a run folder, newest first, or the given checkpoint folder."""
    newest = checkpoint.find(path)
    return [newest] if newest == path else checkpoint.checkpoints(newest.parent)
