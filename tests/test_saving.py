"""Saving goes on in the background and survives kills, full disks and hiccups of the file system."""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from sce_video.errors import InputError, Stopped
from sce_video.runs import checkpoint, files
from sce_video.runs.background_save import Saver, snapshot
from sce_video.runs.files import retry_io


def state(value: float, size: int = 64) -> checkpoint.State:
    return {"method": {"w": torch.full((size, size), value)}, "scaler": {}}


def names(folder: Path) -> list[str]:
    return [path.name.removeprefix("step_").lstrip("0") for path in checkpoint.checkpoints(folder)]


def save_forever(folder: Path) -> None:
    torch.set_num_threads(1)
    with Saver(keep=2, keep_every=0, report=print) as saver:
        for step in range(1, 10**6):
            saver.save(folder, step, state(step, 1700), {})  # 12 MB
            (folder / f"started_{step}").touch()


@pytest.mark.slow
def test_kill_at_25_moments_of_saving_leaves_no_unreadable_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    swept = read = 0
    for trial in range(25):
        folder = tmp_path / str(trial)
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=save_forever, args=(folder,))
        process.start()
        while not (folder / "started_3").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        found = checkpoint.checkpoints(folder)
        assert found
        for path in found:
            loaded, meta = checkpoint.load(path)
            assert loaded["method"]["w"][0, 0] == meta["step"]
            read += 1
        swept += len([*folder.glob(".writing_*"), *folder.glob(".deleting_*")])
        checkpoint.save(folder, 10**6, state(0), {}, keep=2)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "leftovers are swept"
    assert swept > 5, "the kills hit saves"
    assert read >= 25


def die_when_deleting(folder: Path) -> None:
    remove = shutil.rmtree

    def first_file_only(path: Path, **options: bool) -> None:
        if path.exists():
            (path / "state.pt").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path, **options)

    shutil.rmtree = first_file_only
    checkpoint.save(folder, 2, state(2), {}, keep=1)


def test_kill_in_the_middle_of_deleting_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """Too short a moment for the kills above to hit."""
    checkpoint.save(tmp_path, 1, state(1), {}, keep=1)
    process = multiprocessing.get_context("fork").Process(target=die_when_deleting, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (path,) = checkpoint.checkpoints(tmp_path)
    assert checkpoint.load(path)[1]["step"] == 2
    checkpoint.save(tmp_path, 3, state(3), {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"], "the half one is swept"


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen without cutting the power: what is synced, and when."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        done.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 1, state(1), {}, keep=1)
    work = f".writing_00000001_{os.getpid()}"
    assert done == ["state.pt", "meta.json", work, f"{work} -> step_00000001", "checkpoints"]


def test_old_checkpoints_go_but_every_nth_stays(tmp_path: Path) -> None:
    with Saver(keep=2, keep_every=20, report=print) as saver:
        for step in range(10, 71, 10):
            saver.save(tmp_path, step, state(step), {})
    assert names(tmp_path) == ["70", "60", "40", "20"]


def test_checkpoint_that_cannot_be_deleted_does_not_stop_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, state(1), {}, keep=1)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name.startswith(".deleting"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    checkpoint.save(tmp_path, 2, state(2), {}, keep=1)
    assert names(tmp_path) == ["2", "1"]
    monkeypatch.undo()
    checkpoint.save(tmp_path, 3, state(3), {}, keep=1)
    assert names(tmp_path) == ["3"]


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path: Path) -> None:
    weights = torch.zeros(1 << 20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0, momentum=0.9)
    with Saver(keep=2, keep_every=0, report=print) as saver:
        saver.save(tmp_path, 1, {"w": weights, "optimizer": optimizer.state_dict(), "list": [weights]}, {})
        weights += 1  # as the next step does
    loaded, _ = checkpoint.load(checkpoint.find(tmp_path))
    assert loaded["w"].abs().max() == loaded["list"][0].abs().max() == 0
    copied = snapshot({"a": (weights, [1, "b"])})
    assert copied["a"][0].data_ptr() != weights.data_ptr()
    assert torch.equal(copied["a"][0], weights)


def test_one_save_at_a_time_the_next_and_the_end_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, most, gate = 0, 0, threading.Event()
    write = checkpoint.save

    def slow(*arguments: object, **options: object) -> Path:
        nonlocal going_on, most
        going_on += 1
        most = max(most, going_on)
        gate.wait(10)
        time.sleep(0.05)
        path = write(*arguments, **options)
        going_on -= 1
        return path

    monkeypatch.setattr(checkpoint, "save", slow)
    with Saver(keep=9, keep_every=0, report=print) as saver:
        saver.save(tmp_path, 1, state(1), {})
        assert names(tmp_path) == [], "training goes on meanwhile"
        saver.check()
        gate.set()
        for step in (2, 3):
            saver.save(tmp_path, step, state(step), {})
    assert names(tmp_path) == ["3", "2", "1"]
    assert most == 1


FULL = """
import sys, torch; sys.path.insert(0, {tests!r})
from pathlib import Path
from sce_video.runs import checkpoint
from sce_video.errors import Stopped
from sce_video.runs.background_save import Saver
{limit}
folder, said = Path(sys.argv[1]), []
with Saver(keep=1, keep_every=0, report=said.append) as saver:
    saver.save(folder, 2, {{"w": torch.zeros(1 << 20)}}, {{}})
    saver.wait()
    print(said[0])
    print([path.name for path in folder.iterdir()])
    saver.save(folder, 3, {{"w": torch.ones(1)}}, {{}})
    saver.wait()
    for step in (4, 5, 6):
        saver.save(folder, step, {{"w": torch.zeros(1 << 20)}}, {{}})
        try:
            saver.wait()
        except Stopped as error:
            print("stopped:", error)
print([path.name for path in folder.iterdir()])
"""
FILE_LIMIT = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
)


@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_full_disk_leaves_the_old_checkpoint_says_so_and_is_survived(kind: str, tmp_path: Path) -> None:
    """A limit on the size of files, and where we may mount, a disk of 2 MB: 4 MB do not fit, 4 bytes do."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if kind == "tmpfs":
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting is not allowed here")
    try:
        checkpoint.save(folder, 1, state(1), {}, keep=1)
        script = FULL.format(tests=str(ROOT / "tests"), limit=FILE_LIMIT if kind == "limit" else "")
        result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        reason = "File too large" if kind == "limit" else "No space left on device"
        assert re.fullmatch(
            rf"warning: the checkpoint of step 2 could not be written: {reason} \(\d+ MB free\); training goes on, the "
            "checkpoint before it is whole",
            lines[0],
        )
        assert lines[1] == "['step_00000001']", "nothing is deleted before there is a newer one"
        assert lines[2].startswith("stopped: the checkpoint of step 6")
        assert lines[2].endswith("that was number 3 in a row")
        assert lines[3] == "['step_00000003']", "the small one fitted"
        assert checkpoint.load_newest(folder) is not None
    finally:
        if kind == "tmpfs":
            subprocess.run(["umount", str(folder)], check=True)


def test_last_checkpoint_must_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with Saver(keep=1, keep_every=0, report=said.append) as saver:
        saver.save(tmp_path / "file/folder", 1, state(1), {})
        with pytest.raises(Stopped, match="the last checkpoint could not be written to .*file/folder.*: make room"):
            saver.finish()
    assert len(said) == 1


def test_failure_is_told_when_the_next_save_comes_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with Saver(keep=1, keep_every=0, report=said.append) as saver:
        saver.save(tmp_path / "file/folder", 1, state(1), {})
        saver.save(tmp_path, 2, state(2), {})
        saver.finish()
    assert len(said) == 1
    assert "the checkpoint of step 1 could not be written: Not a directory" in said[0]


def test_a_bug_in_the_thread_is_not_swallowed(tmp_path: Path) -> None:
    with Saver(keep=1, keep_every=0, report=print) as saver:
        saver.save(tmp_path, 1, {"not weights": threading.Lock()}, {})
        while saver._pending is not None and not saver._pending.done():
            time.sleep(0.01)
        with pytest.raises((AttributeError, TypeError, RuntimeError)):
            saver.check()


def test_hiccups_are_waited_for_and_other_errors_are_not() -> None:
    calls: list[int] = []

    def fail(times: int, number: int) -> str:
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return "done"

    assert retry_io(lambda: fail(2, errno.ESTALE), "reading", waits=(0, 0)) == "done"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(OSError, match="Stale file handle"):
        retry_io(lambda: fail(3, errno.ESTALE), "reading", waits=(0, 0))
    calls.clear()
    with pytest.raises(FileNotFoundError):
        retry_io(lambda: fail(1, errno.ENOENT), "reading", waits=(0, 0))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ECONNRESET"])
def test_hiccups_of_a_save_are_waited_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def hiccup(descriptor: int) -> None:
        if len(waited) < 2:
            raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(os, "fsync", hiccup)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    checkpoint.save(tmp_path, 1, state(1), {}, keep=1)
    assert waited == [1, 10]
    assert checkpoint.load_newest(tmp_path) is not None


def test_hiccups_of_reading_do_not_make_a_checkpoint_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be passed over, and steps lost. Every file fails to open at first."""
    path = checkpoint.save(tmp_path, 1, state(1), {}, keep=1)
    opened, waited = [], []

    def hiccup(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file).parent == path:
            opened.append(Path(file).name)
            if len(opened) % 2:
                raise OSError(errno.ESTALE, "Stale file handle")
        return open_file(file, *arguments, **options)

    open_file = open
    monkeypatch.setattr(files.time, "sleep", waited.append)
    monkeypatch.setattr(io, "open", hiccup)
    monkeypatch.setattr(builtins, "open", hiccup)
    if accessor := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10: pathlib keeps its own reference to io.open
        monkeypatch.setattr(accessor, "open", staticmethod(hiccup))
    loaded, _ = checkpoint.load(path)
    monkeypatch.undo()
    assert torch.equal(loaded["method"]["w"], state(1)["method"]["w"])
    assert opened == ["meta.json"] * 2 + ["state.pt"] * 6
    assert waited == [1, 1, 1, 1]


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), {}, keep=1) / "state.pt"
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="is damaged"):
            checkpoint.load(path.parent)


@pytest.mark.slow
def test_tool_shows_digests_and_contents(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        checkpoint.save(tmp_path / name / "checkpoints", 1, state(float(value)), {"note": "mine"}, keep=1)
    broken = checkpoint.save(tmp_path / "a/checkpoints", 2, state(3), {}, keep=2)
    paths = [str(tmp_path / name) for name in ("b", "c")] + [str(tmp_path / "a/checkpoints/step_00000001")]

    def tool(*arguments: str) -> str:
        command = [sys.executable, str(ROOT / "tools/checkpoint.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    b, c, a = (line.split()[0] for line in tool("digest", *paths).splitlines())
    assert a == b == checkpoint.state_digest(state(1.0)) != c
    (broken / "state.pt").write_bytes(b"")
    said = tool("inspect", str(tmp_path / "a"))
    assert "step_00000002 is damaged" in said
    assert "step_00000001: whole" in said
    assert "note: mine" in said
    assert "method/w  float32 [64, 64]" in said
    assert said.splitlines()[-1] == f"digest {a}"
