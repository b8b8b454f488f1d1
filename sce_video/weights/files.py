"""Read files of weights from anywhere without running anything in them.

Three formats, told apart by their first bytes: torch.save's zip archive, its older format (before torch 1.6; torchvision's
r2plus1d_18 and SlowFast's zoo are such files), and safetensors. torch.load is only ever called with weights_only=True.

Lightning and others save their options beside the tensors as pickled objects of foreign classes, which the safe loader
refuses. For those it is given stand-ins under the foreign names: nothing is imported, and what the file calls or builds
is one of three inert classes below. A file that names `os` or `sys` is refused by torch even so.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

from ..errors import InputError

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number 0x1950a86a20f9469cfc6c, pickled
# What a damaged or odd pickle can raise on the way; torch turns only some of it into UnpicklingError.
_DAMAGED = (
    *(UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, IndexError, AttributeError, TypeError),
    *(AssertionError, struct.error),
)


class WeightFile(NamedTuple):
    """What a file holds: tensors in plain containers, and for safetensors its text metadata."""

    content: Any
    metadata: dict[str, str]


class _Inert:
    """Stands in for an object: takes any arguments and any state, and keeps none."""

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _InertMapping:
    """Stands in for a kind of dict: the safe loader puts items only into types that it knows."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _InertList:
    def __new__(cls, *_: Any) -> Any:
        return []


_CONTAINERS: dict[str, Any] = {"collections.defaultdict": _InertMapping, "collections.deque": _InertList}


def read(path: str | Path) -> WeightFile:
    """Return what a weight file holds, on the CPU.

    Raises InputError for what is no weight file, is damaged, or can only be read by running code in it.
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
                # Of another pickle protocol, or of TorchScript: read, or refused below.
                warnings.filterwarnings("ignore", message="Detected pickle protocol|'torch.load' received a zip file")
                return WeightFile(_load(path, zipped=start[:4] == _ZIP), {})
        except _DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} is not a weight file that can be read safely: {reason}") from error
    if start[8:9] == b"{":
        return _load_safetensors(path)
    hint = ", and Caffe2's .pkl are not: convert them with SlowFast" if path.suffix == ".pkl" else ""
    raise InputError(
        f"{path} is not a weight file: it begins neither as torch.save's (zip or the older format) nor as safetensors{hint}"
    )


def _load(path: Path, *, zipped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not zipped:
            raise
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    try:
        return _load_with(path, names, _Inert)
    except UnpicklingError:  # something was put into one of them: they may be kinds of dict
        return _load_with(path, names, _InertMapping)


def _load_with(path: Path, names: list[str], stand_in: Any) -> Any:
    known: list[Any] = []
    for name in names:
        # Arrays and scalars of numpy are never dicts, and have a state that only an object takes.
        usual = _Inert if name.startswith("numpy.") else stand_in
        known.append((_CONTAINERS.get(name, usual), name))
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
