"""data.train=file.py:Name: a data set of one's own is trained on, continued after kill -9, evaluated, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_RECIPE, losses, run_tool

from sce_video.data import loader
from sce_video.data.decode import DecodeError, open_row
from sce_video.errors import InputError

FILE = ROOT / "examples/own_data_set.py"
FIT = "import numpy as np\nclass Own:\n    paths = ['a', 'b']\n    def __len__(self):\n        return 2\n"


def test_rows_and_frames_are_those_of_the_object() -> None:
    rows = loader.read_videos(f"{FILE}:Squares", split="train")
    assert [(row.path, row.label) for row in rows[:2]] == [("square_0000", "left"), ("square_0001", "right")]
    with open_row(rows[3]) as video:
        assert (video.num_frames, video.height, float(video.fps)) == (24, 48, 12.0)
        frames = video.read([0, 23, 5])
    with open_row(rows[3]) as video:
        assert torch.equal(video.read([5])[0], frames[2])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Own:\n    pass\n", r"is no data set: `__len__` is missing, `paths` is missing, `read` is missing; it needs"),
        (
            FIT + "    def read(self, row):\n        return np.zeros((4, 8, 8, 3))\n",
            r"read\(0\) gave ndarray, not \(frames uint8",
        ),
        (FIT + "    def read(self, row):\n        return np.zeros((4, 8, 8, 3)), 5\n", r"float64 \[4, 8, 8, 3\], not"),
        (FIT + "    def read(self, row):\n        return np.zeros((4, 8, 8, 3), np.uint8), 0\n", "gave the rate 0"),
        (FIT.replace("2", "3") + "    def read(self, row):\n        return 1\n", "`paths` has 2 entries, the data set 3 rows"),
        ("x = 1\n", "has no 'Own'"),
    ],
)
def test_a_broken_one_is_refused_with_what_is_missing(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(body)
    with pytest.raises(InputError, match=message):
        loader.read_videos(f"{tmp_path}/own.py:Own", split="train")


def test_a_row_that_fails_later_is_an_unreadable_video(tmp_path: Path) -> None:
    body = FIT + "    def read(self, row):\n        return np.zeros((4, 8, 8, 3), np.uint8), 5 / (1 - row)\n"
    (tmp_path / "own.py").write_text(body)
    rows = loader.read_videos(f"{tmp_path}/own.py:Own", split="train")
    with pytest.raises(DecodeError, match="b: ZeroDivisionError"), open_row(rows[1]):
        pass


@pytest.mark.slow
def test_the_example_is_trained_continued_after_kill_9_and_evaluated(tmp_path: Path) -> None:
    own = [*TINY_RECIPE, f"data.train={FILE}:Squares", "optim.epochs=2", "system.save_every=1", "system.workers=1"]
    whole = run_tool("pretrain", *own, "out=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = run_tool("pretrain", *own, "out=run", cwd=tmp_path, SCE_VIDEO_FAULT="kill@step=5", SCE_VIDEO_ALLOW_FAULTS="1")
    assert killed.returncode == -9
    again = run_tool("pretrain", *own, "out=run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    lists = [f"train={FILE}:Squares", f"test={FILE}:Held", "clips_per_video=1", "num_crops=1", "shots=[]", "linear=false"]
    scored = run_tool("evaluate", "checkpoint=run", *lists, cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "16/16, 32/32" in scored.stdout
