"""Features and retrieval of real checkpoints, compared to the same computation by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RECIPE, run_tool

import sce_video


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the tiny recipe."""
    folder = tmp_path_factory.mktemp("run")
    result = run_tool("pretrain", *TINY_RECIPE, f"data.train={videos / 'train.csv'}", "out=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
def test_tool_prints_writes_and_never_overwrites(videos: Path, run: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={run}", f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}"]
    arguments += ["clips_per_video=2", "workers=0"]
    result = run_tool("retrieval", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("R@1", "R@25", "checkpoint", "random weights", "8/8, 24/24"):
        assert word in result.stdout
    first = run / "retrieval_val.json"
    written = json.loads(first.read_text())
    assert (written["views"]["clips_per_video"], written["views"]["num_crops"]) == (2, 3)
    recall = written["rows"]["checkpoint"]["backbone, all views, centred"]["recall_at_k"]
    assert list(recall) == ["1", "5", "10", "20", "25", "50"]
    assert sorted(recall.values()) == list(recall.values())
    before = first.read_bytes()
    again = run_tool("retrieval", *arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert first.read_bytes() == before
    assert (run / "retrieval_val_2.json").read_bytes() == before, "the same numbers again"
    refused = run_tool("retrieval", *arguments, f"out={first}", cwd=tmp_path)
    assert refused.returncode == 70
    assert "exists" in refused.stderr
    assert first.read_bytes() == before


@pytest.mark.slow
def test_two_processes_score_the_same(videos: Path, run: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={run}", f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}"]
    arguments += ["clips_per_video=1", "workers=0", "cache=false"]
    for processes in (0, 2):
        result = run_tool("retrieval", *arguments, f"out={processes}.json", cwd=tmp_path, processes=processes)
        assert result.returncode == 0, result.stderr
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 2))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere", "train={videos}", "test={videos}"], "no checkpoint in 'nowhere'"),
        (["train={videos}", "test={videos}"], "option checkpoint must be given"),
        (["checkpoint={run}", "train={videos}", "test=flat.txt"], "has no label"),
        (["checkpoint={run}", "train={videos}", "test={videos}", "num_crops=2"], "num_crops (2) must be 1 or 3"),
        (["checkpoint={run}", "train={videos}", "test={videos}", "views=2"], "unknown option 'views'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, videos: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.txt").write_text("a.mp4\nb.mp4\n")
    filled = [argument.format(videos=videos, run=run) for argument in arguments]
    result = run_tool("retrieval", *filled, cwd=tmp_path)
    assert result.returncode == 70, result.stderr
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if "passed over" not in line]) == 1


def test_encoder_from_a_moved_run_folder(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "elsewhere")
    clips = torch.rand(1, 3, 4, 32, 32)
    encoder = sce_video.load_encoder(tmp_path / "elsewhere")
    assert not encoder.training
    assert torch.equal(encoder(clips), sce_video.load_encoder(run / "checkpoints")(clips))
    assert encoder.clip == {"num_frames": 4, "clip_seconds": 0.8, "size": 32}
    assert np.isfinite(encoder(clips).numpy()).all()
