"""Atomic checkpoints: written under a temporary name, with a digest, and renamed.

One checkpoint is a folder `step_00001200/` with `state.pt` (tensors and plain containers only, loaded with
weights_only=True) and `meta.json`, written last, with the digests of state.pt and of itself. At every instant the newest
complete checkpoint can be read: torch.load and JSON accept files with flipped bits, so the digests decide what is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from .. import distributed
from ..errors import InputError
from .files import retry_io

FORMAT_VERSION = 2  # 1: meta.json without a digest of its own
_META_DIGEST = "sha256_of_meta"
_NAME = re.compile(r"step_\d{8,}")
# Errors that a damaged file can raise; torch turns only some of them into UnpicklingError.
DAMAGED = (
    *(UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, IndexError, AttributeError, TypeError),
    *(AssertionError, struct.error, RecursionError, zipfile.BadZipFile),
)

MAX_DEPTH, MAX_ITEMS = 64, 1_000_000  # of nested containers
MAX_UNPACKED = 100 << 20  # bytes that a zip file may unpack to beyond its own size
State = dict[str, Any]


class NewerFormat(InputError):
    """A checkpoint of a later version of this package: it is whole, so nothing older takes its position."""


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
    for name, value in leaves("", state):
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path of names, value) of everything in nested containers that is no container, sorted by key."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from leaves(f"{name}/{key}", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(f"{name}/{index}", item)
    else:
        yield name, value


def check_unpacked(path: Path) -> None:
    """Raise ValueError for a zip file that unpacks to much more than its own size: torch.save does not compress."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size + MAX_UNPACKED:
        raise ValueError(
            f"its {path.stat().st_size / 1e6:.1f} MB unpack to {unpacked / 1e6:.0f} MB; torch.save does not compress"
        )


def check_contents(value: Any) -> None:
    """Raise ValueError for contents that a small file can make endless: containers in themselves, views of one number."""
    depth, level, seen = 0, [value], 0
    while level:
        for tensor in (item for item in level if isinstance(item, Tensor)):
            if tensor.layout is torch.strided and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {list(tensor.shape)} is stored as {tensor.untyped_storage().nbytes()} bytes")
        dicts = [item.values() for item in level if isinstance(item, dict)]
        level = [inner for item in (*dicts, *(item for item in level if isinstance(item, (list, tuple)))) for inner in item]
        depth, seen = depth + 1, seen + len(level)
        if depth > MAX_DEPTH or seen > MAX_ITEMS:
            raise ValueError(f"its containers hold each other: more than {MAX_DEPTH} deep or {MAX_ITEMS} items")


def not_finite(state: State) -> list[str]:
    """Return the names of the floating-point tensors that hold NaN or +infinity (masks may hold -infinity)."""
    tensors = [(name, value) for name, value in leaves("", state) if isinstance(value, Tensor) and value.is_floating_point()]
    return [name.lstrip("/") for name, value in tensors if not (value < torch.inf).all()]


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
            text.write(_meta_text(described))
            text.flush()
            os.fsync(text.fileno())
        _synced(work)
        if final.exists():  # a damaged one of the same step, or resume would have begun after it
            _delete(final)
        work.rename(final)
        _synced(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _meta_text(meta: dict[str, Any]) -> str:
    """Return the text of meta.json: indented, with a digest over the rest of it at the end."""
    rest = {name: value for name, value in meta.items() if name != _META_DIGEST}
    digest = hashlib.sha256(json.dumps(rest, indent=2).encode()).hexdigest()
    return json.dumps({**rest, _META_DIGEST: digest}, indent=2)


def _read_meta(path: Path) -> dict[str, Any]:
    """Return the meta data of a checkpoint folder. Raises InputError unless every byte is as it was written."""
    text = retry_io((path / "meta.json").read_text, f"reading {path}")
    meta: dict[str, Any] = json.loads(text)
    version = meta["format_version"]
    if version != 1 and _meta_text(meta) != text:
        raise InputError(f"checkpoint {path} is damaged: meta.json does not match its digest")
    if type(version) is not int or type(meta["step"]) is not int or not isinstance(meta.get("encoder", {}), dict):
        raise InputError(f"checkpoint {path} is damaged: meta.json holds other things than a checkpoint's")
    if version > FORMAT_VERSION:
        raise NewerFormat(f"checkpoint {path} has format {version}, this version reads up to {FORMAT_VERSION}: update sce_video")
    return meta


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
        meta = _read_meta(path)
        if retry_io(lambda: file_digest(path / "state.pt"), f"reading {path}") != meta["sha256"]:
            raise InputError(f"checkpoint {path} is damaged: state.pt does not match its digest")
        retry_io(lambda: check_unpacked(path / "state.pt"), f"reading {path}")
        state: State = retry_io(lambda: torch.load(path / "state.pt", map_location="cpu", weights_only=True), f"reading {path}")
        check_contents(state)
    except DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {path} is damaged: state.pt holds no table of tensors")
    return state, meta


def load_newest(
    folder: Path, *, report: Callable[[str], None] = lambda text: distributed.warn([text]), needed: Sequence[str] = ()
) -> tuple[State, dict[str, Any]] | None:
    """Return the newest checkpoint that is whole, or None if there is none; `report` names those passed over.

    One without the `needed` entries of meta.json, or with tensors that are not finite, is passed over too.

    Raises InputError when there are checkpoints and all are damaged: starting anew would overwrite them.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            state, meta = load(path)
        except NewerFormat:
            raise
        except InputError as error:
            report(f"passed over: {error}")
            continue
        if missing := [name for name in needed if name not in meta]:
            report(f"passed over: checkpoint {path} is damaged: meta.json has no {', '.join(missing)}")
        elif bad := not_finite(state):
            report(f"passed over: checkpoint {path} holds {len(bad)} tensors that are not finite, e.g. {bad[0]}")
        else:
            return state, meta
    if found:
        raise InputError(f"all {len(found)} checkpoints in {folder} are damaged: move them away to start anew")
    return None


def newest_meta(folder: Path) -> dict[str, Any] | None:
    """Return the meta data of the newest checkpoint whose meta.json is whole, None without one. No tensors are read."""
    for path in checkpoints(folder):
        try:
            return _read_meta(path)
        except NewerFormat:
            raise
        except DAMAGED:
            continue
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
