"""Read weight files from any source without executing code from them.

The first bytes distinguish three formats: torch.save's zip archive, its legacy format (before torch 1.6; used by
torchvision's r2plus1d_18 and SlowFast's model zoo), and safetensors. Every torch.load uses weights_only=True.

Lightning and others pickle option objects of their own classes beside the tensors, which the safe loader refuses. This
module registers an inert class for each such name: nothing is imported, and the file can only build the three inert classes
below. torch still refuses a file that names `os` or `sys`.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

from ..errors import InputError
from ..runs.checkpoint import DAMAGED, check_contents, check_unpacked

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number 0x1950a86a20f9469cfc6c, pickled


class WeightFile(NamedTuple):
    """Content of a file: tensors in plain containers, and the text metadata of safetensors."""

    content: Any
    metadata: dict[str, str]


class _Inert:
    """Replaces an object: accepts any arguments and state, and ignores them."""

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _InertMapping:
    """Replaces a dict subclass, because the safe loader sets items only on types that it knows."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _InertList:
    def __new__(cls, *_: Any) -> Any:
        return []


_CONTAINERS: dict[str, Any] = {"collections.defaultdict": _InertMapping, "collections.deque": _InertList}


def read(path: str | Path) -> WeightFile:
    """Return the content of a weight file, on the CPU.

    Raises InputError if the file is not a weight file, is damaged, or can only be read by executing code from it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if start[:4] == _ZIP or start.startswith(_OLD):
        try:
            with warnings.catch_warnings():
                # Another pickle protocol is read; TorchScript is refused below.
                warnings.filterwarnings("ignore", message="Detected pickle protocol|'torch.load' received a zip file")
                return WeightFile(_load(path, zipped=start[:4] == _ZIP), {})
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is not a weight file that can be read safely: {reason}") from error
    if start[8:9] == b"{":
        return _load_safetensors(path)
    hint = ". Caffe2's .pkl files are not supported: convert them with SlowFast" if path.suffix == ".pkl" else ""
    raise InputError(
        f"{path} is not a weight file: it begins neither as torch.save (zip or legacy format) nor as safetensors{hint}"
    )


def _load(path: Path, *, zipped: bool) -> Any:
    if zipped:
        check_unpacked(path)
    content = _load_safely(path, zipped=zipped)
    check_contents(content)
    return content


def _load_safely(path: Path, *, zipped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not zipped:
            raise
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    try:
        return _load_with(path, names, _Inert)
    except UnpicklingError:  # the file sets items on one of them: it may be a dict subclass
        return _load_with(path, names, _InertMapping)


def _load_with(path: Path, names: list[str], stand_in: Any) -> Any:
    known: list[Any] = []
    for name in names:
        # numpy's arrays and scalars are never dicts, and their state needs an object.
        default = _Inert if name.startswith("numpy.") else stand_in
        known.append((_CONTAINERS.get(name, default), name))
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_safetensors(path: Path) -> WeightFile:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(f"{path} is a safetensors file: pip install safetensors to read it") from error
    try:
        with safe_open(path, framework="pt") as file:
            return WeightFile({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a weight file that can be read safely: {error}") from error
