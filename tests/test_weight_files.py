"""Tensors load from files with foreign objects, and no code of a file is executed."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import dataclasses
import enum
import gc
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sce_video.errors import InputError
from sce_video.runs import checkpoint
from sce_video.weights import files, layouts, read

KEY = "trunk.model.blocks.0.conv.weight"
WEIGHTS = {KEY: torch.arange(6.0).view(2, 3)}


class Options:
    def __init__(self) -> None:
        self.rate = 0.1


class Attributes(dict):  # type: ignore[type-arg]
    """A dict subclass like Lightning's AttributeDict or yacs' CfgNode."""


class Stage(enum.Enum):
    train = "train"


@dataclasses.dataclass(frozen=True)
class Slots:
    __slots__ = ("depth",)
    depth: int


def filled(mapping: Any, **values: Any) -> Any:
    mapping.update(values)
    return mapping


CONFIG = OmegaConf.create({"lr": 0.1, "model": {"widths": [1, 2, "${lr}"], "name": None}})
FOREIGN = {
    "omegaconf": CONFIG,
    "resolved omegaconf": OmegaConf.create({"home": "${oc.env:HOME}", "stage": Stage.train}),
    "argparse": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x"), stage=Stage.train),
    "class": Options(),
    "numpy": {"scalar": np.float64(3), "array": np.arange(3), "generator": np.random.default_rng(0).bit_generator.state},
    "slots": Slots(3),
    "default dict": filled(collections.defaultdict(list), a=[1], b=Options()),
    "deque": collections.deque([1, Options()], maxlen=3),
    "dict of one's own": Attributes(lr=0.1, inner=Attributes(a=argparse.Namespace(b=1)), array=np.arange(3)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_tensors_beside_foreign_objects_are_read(what: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": WEIGHTS, "hyper_parameters": FOREIGN[what]}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    content = files.read(path).content
    assert content["epoch"] == 3
    assert torch.equal(content["state_dict"][KEY], WEIGHTS[KEY])
    assert set(torch.serialization.get_safe_globals()) == before, "nothing is allowed for good"


def content_or_refusal(path: Path) -> tuple[Any, str]:
    try:
        return files.read(path).content, ""
    except InputError as error:
        return None, str(error)


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Namespaced:
    @staticmethod
    def run(_: Any, text: str) -> None:
        eval(text)


class State:
    """Pickles as an object whose state is set by `function(object, state)`."""

    def __init__(self, function: Any, state: Any) -> None:
        self.function, self.state = function, state

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (), self.state, None, None, self.function


MARK = "__import__('pathlib').Path({!r}).write_text('x')"
HOSTILE = {
    "system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(builtins.eval, MARK.format(mark)),
    "exec": lambda mark: Call(builtins.exec, MARK.format(mark)),
    "popen": lambda mark: Call(subprocess.Popen, ["touch", mark]),
    "open": lambda mark: Call(open, mark, "w"),
    "nested": lambda mark: argparse.Namespace(a=Attributes(b=Call(builtins.eval, MARK.format(mark)))),
    "state": lambda mark: State(Namespaced.run, MARK.format(mark)),
    "rebuild": lambda mark: Call(torch._tensor._rebuild_from_type_v2, os.mkdir, Options, (mark,), {}),
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_in_a_file_runs(what: str, old_format: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    content = {"state_dict": WEIGHTS, "hyper_parameters": HOSTILE[what](str(mark))}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    content, refusal = content_or_refusal(path)
    assert not mark.exists()
    if refusal:
        assert old_format or what in ("system", "state", "rebuild")
        assert "is not a weight file that can be read safely" in refusal
    else:
        assert torch.equal(content["state_dict"][KEY], WEIGHTS[KEY])


def test_the_hostile_files_are_hostile(tmp_path: Path) -> None:
    """Otherwise the test above would also pass for harmless files."""
    for what in HOSTILE.keys() - {"popen"}:  # its file appears later
        mark = tmp_path / what
        path = tmp_path / "evil.pt"
        torch.save({"hyper_parameters": HOSTILE[what](str(mark))}, path)
        with warnings.catch_warnings(), contextlib.suppress(AttributeError, TypeError):
            warnings.simplefilter("ignore", ResourceWarning)
            torch.load(path, weights_only=False)
            gc.collect()
        assert mark.exists(), what


TEXT = b"X\x05\x00\x00\x00whoop"  # a string
RAW = {
    "calls what a call returned": b"cone\nthing\n)R)R.",
    "sets the state of a class": b"cone\nthing\n}" + TEXT + TEXT + b"sb.",
    "sets the state of torch's own function": b"ctorch._utils\n_rebuild_tensor_v2\n}" + TEXT + TEXT + b"sb.",
    "calls torch's own function with stand-ins": b"ctorch._utils\n_rebuild_tensor_v2\n(cone\nthing\n)R}tR.",
    "names what torch blocks": b"cos\nsystem\n(" + TEXT + b"tR.",
    "names something inside what torch blocks": b"cos.path\njoin\n(" + TEXT + b"tR.",
    "makes an instance in the oldest way": b"(" + TEXT + b"ibuiltins\neval\n.",
    "names from the stack": b"X\x08\x00\x00\x00builtinsX\x04\x00\x00\x00eval\x93(" + TEXT + b"tR.",
    "asks for an extension": b"\x82\x01.",
    "is the stand-in itself": b"cone\nthing\n.",
    "has no end": b"cone\nthing\n",
    "has an empty stack": b"R.",
}


@pytest.mark.parametrize("what", RAW)
def test_odd_pickles_are_harmless(what: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02" + RAW[what] if name.endswith("data.pkl") else old.read(name))
    content, refusal = content_or_refusal(tmp_path / "b.pt")
    assert "is not a weight file that can be read safely" in refusal or layouts.unwrap(content) == {}


def test_no_module_named_in_a_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"state_dict": WEIGHTS, "options": Options()}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(Options.__module__.encode() + b"\nOptions", b"trap_module\nOptions"))
    assert files.read(tmp_path / "b.pt").content["state_dict"].keys() == WEIGHTS.keys()


def test_the_older_format_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "a.pyth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "a.pyth")
    assert torch.equal(files.read(tmp_path / "a.pyth").content["w"], torch.arange(3.0))
    torch.save({"w": torch.ones(1), "o": Options()}, tmp_path / "b.pyth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not a weight file that can be read safely"):
        files.read(tmp_path / "b.pyth")


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file

    save_file({"w": torch.arange(3.0)}, tmp_path / "a.safetensors", metadata={"about": "x"})
    file = files.read(tmp_path / "a.safetensors")
    assert torch.equal(file.content["w"], torch.arange(3.0))
    assert file.metadata == {"about": "x"}
    damaged = (tmp_path / "a.safetensors").read_bytes()[:-4]
    (tmp_path / "a.safetensors").write_bytes(damaged)
    with pytest.raises(InputError, match="not a weight file that can be read safely"):
        files.read(tmp_path / "a.safetensors")


def test_missing_safetensors_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        files.read(tmp_path / "a.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "b.pt").write_bytes(b"<html>not found</html>")
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}, protocol=2))
    for name, message in (("a.pt", "begins neither"), ("b.pt", "begins neither"), ("c.pkl", "convert them with SlowFast")):
        with pytest.raises(InputError, match=message):
            files.read(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        files.read(tmp_path)


def test_torchscript_is_code_and_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as file:
        file.writestr("a/constants.pkl", b"\x80\x02).")
    with pytest.raises(InputError, match="read safely: .*TorchScript"):
        files.read(tmp_path / "a.pt")


@pytest.mark.parametrize("old_format", [False, True])
def test_damaged_files_are_refused_and_never_crash(old_format: bool, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "hyper_parameters": FOREIGN["argparse"] if not old_format else {}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old_format)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(InputError):
            files.read(tmp_path / "b.pt")
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(20, len(whole))] ^= 1 << rng.integers(8)
        (tmp_path / "b.pt").write_bytes(damaged)
        with contextlib.suppress(InputError):
            files.read(tmp_path / "b.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["deflated", "overlapping"])
def test_zip_that_unpacks_to_gigabytes_is_refused_before_it_does(method: int, tmp_path: Path) -> None:
    torch.save({"blocks.0.weight": torch.zeros(64)}, tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as source, zipfile.ZipFile(tmp_path / "w.pt", "w", method) as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, bytes(150_000_000) if entry.filename.endswith("/data/0") else content)
        if method == zipfile.ZIP_STORED:  # the directory lists the same bytes many times
            (one,) = [entry for entry in target.filelist if entry.filename.endswith("/data/0")]
            target.filelist += [one] * 50
    if method == zipfile.ZIP_DEFLATED:
        assert (tmp_path / "w.pt").stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(InputError, match="unpack to .* MB; torch.save does not compress"):
        files.read(tmp_path / "w.pt")
    folder = checkpoint.save(tmp_path / "checkpoints", 1, {}, {}, keep=1)
    meta = json.loads((folder / "meta.json").read_text())
    shutil.copy(tmp_path / "w.pt", folder / "state.pt")
    (folder / "meta.json").write_text(checkpoint._meta_text({**meta, "sha256": checkpoint.file_digest(folder / "state.pt")}))
    with pytest.raises(InputError, match="step_00000001 is damaged: .* unpack to"):
        checkpoint.load(folder)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_contents_without_end_are_refused(tmp_path: Path) -> None:
    inside: dict[str, Any] = {"w": torch.zeros(2)}
    inside["state_dict"] = inside
    doubled: list[Any] = [torch.zeros(1)]
    for _ in range(60):
        doubled = [doubled, doubled]
    endless = torch.zeros(1).expand(10**12)
    for name, content, words in (
        ("itself", inside, "its containers hold each other"),
        ("doubled", doubled, "its containers hold each other"),
        ("stride", {"w": endless}, r"a tensor of \[1000000000000\] is stored as 4 bytes"),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(InputError, match=f"{name}.pt is not a weight file that can be read safely: {words}"):
            files.read(path)
        folder = tmp_path / name / "checkpoints"
        checkpoint.save(folder, 1, {"method": content}, {}, keep=1)
        with pytest.raises(InputError, match=f"step_00000001 is damaged: {words}"):
            checkpoint.load(folder / "step_00000001")


WRAPPED = [
    {"model_state_dict": WEIGHTS},
    {"module": WEIGHTS},
    {"net": {"state_dict": WEIGHTS}},
    {"epoch": 3, "ema": WEIGHTS},
    {"model_ema": {"module": WEIGHTS}},
    {"teacher": WEIGHTS},
    {"state_dict": {f"_orig_mod.{key}": value for key, value in WEIGHTS.items()}},
    {f"module._orig_mod.{key}": value for key, value in WEIGHTS.items()},
    {key.replace("model.", "model._orig_mod."): value for key, value in WEIGHTS.items()},
    {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in WEIGHTS.items()}},
]


@pytest.mark.parametrize("content", WRAPPED, ids=lambda content: "+".join(content)[:40])
def test_wrappers_of_other_programs_are_taken_off(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert list(read.read_backbone(tmp_path / "w.pt")) == ["blocks.0.conv.weight"]


def test_part_of_a_file_is_chosen_by_its_key(tmp_path: Path) -> None:
    student, teacher = ({KEY: torch.full((1,), value)} for value in (1.0, 2.0))
    torch.save({"student": student, "teacher": teacher, "mine": {"inner": student}}, tmp_path / "w.pt")
    assert read.read(tmp_path / "w.pt").tensors[KEY] == 1, "the trained one, not its average"
    assert read.read(tmp_path / "w.pt", "teacher").tensors[KEY] == 2
    assert read.read(tmp_path / "w.pt", "mine.inner").tensors[KEY] == 1
    with pytest.raises(
        InputError, match=r"weights\.key=taecher: .*w\.pt has no such key, it has \['student', 'teacher', 'mine'\]"
    ):
        read.read(tmp_path / "w.pt", "taecher")
    torch.save({"mine": {"inner": student}, "epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"its top-level keys are \['mine', 'epoch'\]: weights.key= takes one"):
        read.read_backbone(tmp_path / "other.pt")
