"""Whatever a library raises about one video is counted as an unreadable video, by every program."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_dataset import dataset, sampler

from sce_video.data import decode, loader, manifest
from sce_video.data.dataset import EvaluationDataset
from sce_video.data.decode import DecodeError, reading
from sce_video.data.readers.pyav import PyAVReader
from sce_video.errors import InputError, Preempted

sys.path[:0] = [str(ROOT / "data_prep")]

RAISED = [
    ZeroDivisionError("division by zero"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    StopIteration(),
]


@pytest.fixture
def odd(videos: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes opening the video of row 3 raise what it is given."""
    monkeypatch.setattr(decode, "_logged", mmap.mmap(-1, 1 << 12))
    path = manifest.read(videos / "train.csv")[3].path
    begin = PyAVReader.__init__

    def make(error: Exception) -> str:
        def fail(self: PyAVReader, name: str, **options: Any) -> None:
            if name == path:
                raise error.with_traceback(None)
            begin(self, name, **options)

        monkeypatch.setattr(PyAVReader, "__init__", fail)
        return path

    return make


@pytest.mark.parametrize("error", RAISED, ids=repr)
@pytest.mark.parametrize("workers", [0, 1])
def test_training_replaces_the_video(videos: Path, odd: Any, error: Exception, workers: int, capfd: Any) -> None:
    path = odd(error)
    with loader.build(dataset(videos), sampler(total_steps=3), workers=workers, pin_memory=False) as batches:
        failures = {failure.path: failure.reason for batch in batches for failure in batch.failures}
    assert failures.keys() == {path}
    assert failures[path].startswith(f"{path}: {type(error).__name__}: ")
    told = capfd.readouterr().err
    assert told.count("in fail") == 1, "one stack"
    assert all(line.startswith("warning: ") for line in told.splitlines())


def test_evaluation_names_the_video_as_missing(videos: Path, odd: Any) -> None:
    path = odd(ZeroDivisionError("division by zero"))
    data = EvaluationDataset(manifest.read(videos / "train.csv"), clips_per_video=1, num_frames=2, clip_seconds=0.5)
    assert [failure.reason for failure in data[3].failures] == [f"{path}: ZeroDivisionError: division by zero"]
    assert not data[4].failures


def test_the_check_before_training_goes_on_to_the_next_video(videos: Path, odd: Any) -> None:
    odd(KeyError("codec"))
    rows = manifest.read(videos / "train.csv")
    loader.check_readable([rows[3], rows[4]], seed=0, decoder="auto")
    with pytest.raises(InputError, match="none of 1 videos tried .* KeyError: 'codec'"):
        loader.check_readable([rows[3]], seed=0, decoder="auto")


def test_one_stack_is_logged_for_many_videos(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_logged", mmap.mmap(-1, 1 << 12))
    for name in "abc":
        with pytest.raises(DecodeError, match=f"^{name}: OverflowError: too large$"), reading(name):
            raise OverflowError("too large")
    told = capfd.readouterr().err
    assert told.count("OverflowError: too large") == 1
    assert told.count("raise OverflowError") == 1


@pytest.mark.parametrize("error", [InputError("decord is not installed"), Preempted("SIGTERM")], ids=repr)
def test_what_is_about_the_run_passes(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), reading("a.mp4"):
        raise error


def test_probe_doctor_and_shrink_count_the_video(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from media import examine, probe, transcode
    from media.copy_form import Form

    path = str(next(videos.rglob("*.mp4")))

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    for module in (examine, probe, transcode):
        monkeypatch.setattr(module, "opened", fail)
    monkeypatch.setattr(transcode, "timing_of", fail)
    with pytest.raises(DecodeError, match="ZeroDivisionError: division by zero"):
        probe.probe(path)
    row = examine.examine(path, lambda: None, quick=False, min_frames=1)
    assert (row["status"], row["reason"]) == ("unreadable", "ZeroDivisionError: division by zero")
    form = Form(32, "video", 21, 90, "pyav")
    row = transcode.shrink(path, tmp_path / "copy.mp4", tmp_path / "work.mp4", form, lambda: None)
    assert (row["status"], row["reason"]) == ("failed", "ZeroDivisionError: division by zero")
