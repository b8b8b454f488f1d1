"""Atomic checkpoints: written under a temporary name, with a digest, and renamed.

One checkpoint is a folder `step_00001200/` with `state.pt` (tensors and plain containers only, loaded with
weights_only=True) and `meta.json`, written last, with the digest of state.pt. At every instant the newest complete
checkpoint can be read: torch.load itself accepts files with flipped bits, so the digest decides what is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .. import distributed
from ..errors import InputError
from .files import retry_io

FORMAT_VERSION = 1


_NAME = re.compile(r"step_\d{8,}")


State = dict[str, Any]


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()  # not hashlib.file_digest, which Python 3.10 has not
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def state_digest(state: State) -> str:
    """Return a SHA-256 over names, types, shapes and bytes of all tensors, nested or not: equal states, equal digest."""
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add(f"{name}/{key}", value[key])
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                add(f"{name}/{index}", item)
        elif isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())

    add("", state)
    return digest.hexdigest()


class _Hashing:
    """A file for torch.save that hashes what passes, so that nothing is read back, and keeps why writing failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, step: int, state: State, meta: dict[str, Any], *, keep: int, keep_every: int = 0) -> Path:
    """Write the checkpoint of `step` into `folder` and return its path.

    Then all but the newest `keep`, and those of every `keep_every`-th step (0: none), are deleted. A hiccup of the file
    system is waited for.

    Raises OSError, e.g. on a full disk, with the older checkpoints intact.
    """
    final = folder / f"step_{step:08d}"
    retry_io(lambda: _write(final, step, state, meta), f"writing {final}")
    for old in checkpoints(folder)[keep:]:
        if not keep_every or int(old.name.removeprefix("step_")) % keep_every:
            with suppress(OSError):  # what cannot be deleted now is deleted after the next save
                _delete(old)
    return final


def _write(final: Path, step: int, state: State, meta: dict[str, Any]) -> None:
    folder = final.parent
    work = folder / f".writing_{step:08d}_{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (*folder.glob(".writing_*"), *folder.glob(".deleting_*")):
        shutil.rmtree(left_over, ignore_errors=True)
    work.mkdir()
    try:
        with open(work / "state.pt", "wb") as file:
            hashing = _Hashing(file)
            try:
                torch.save(state, hashing)  # type: ignore[arg-type]  # it only writes and flushes
            except RuntimeError as error:  # "unexpected pos", about a file that could not be written to its end
                raise hashing.error or error from error
            file.flush()
            os.fsync(file.fileno())
        described = {"format_version": FORMAT_VERSION, "step": step, "sha256": hashing.digest.hexdigest(), **meta}
        with open(work / "meta.json", "w") as text:  # last: without it there is no checkpoint
            json.dump(described, text, indent=2)
            text.flush()
            os.fsync(text.fileno())
        _synced(work)
        if final.exists():  # a damaged one of the same step, or resume would have begun after it
            _delete(final)
        work.rename(final)
        _synced(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _delete(path: Path) -> None:
    """Take away the final name first: a kill in the middle leaves no half checkpoint under it."""
    doomed = path.with_name(f".deleting_{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, newest first; not checked."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """Return state (on the CPU) and meta of one checkpoint folder. Raises InputError if it is damaged."""
    try:
        meta = json.loads(retry_io((path / "meta.json").read_text, f"reading {path}"))
        if retry_io(lambda: file_digest(path / "state.pt"), f"reading {path}") != meta["sha256"]:
            raise InputError(f"checkpoint {path} is damaged: state.pt does not match its digest")
        state: State = retry_io(lambda: torch.load(path / "state.pt", map_location="cpu", weights_only=True), f"reading {path}")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint {path} is damaged: {error}") from error
    return state, meta


def _print_once(text: str) -> None:
    if distributed.rank() == 0:
        print(text)


def load_newest(folder: Path, *, report: Callable[[str], None] = _print_once) -> tuple[State, dict[str, Any]] | None:
    """Return the newest checkpoint that is whole, or None if there is none; `report` names those passed over.

    Raises InputError when there are checkpoints and all are damaged: starting anew would overwrite them.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            return load(path)
        except InputError as error:
            report(f"passed over: {error}")
    if found:
        raise InputError(f"all {len(found)} checkpoints in {folder} are damaged: move them away to start anew")
    return None


def find(path: str | Path) -> Path:
    """Return the checkpoint folder meant by a run folder, its `checkpoints` folder, or a checkpoint folder itself."""
    path = Path(path)
    if _NAME.fullmatch(path.resolve().name) and path.is_dir():
        return path
    for folder in (path / "checkpoints", path):
        if found := checkpoints(folder):
            return found[0]
    raise InputError(f"no checkpoint in {str(path)!r}: give a run folder, a checkpoint folder or a weight file")
