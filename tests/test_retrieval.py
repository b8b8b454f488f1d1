"""Features and retrieval of real checkpoints, against doing it by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RECIPE, run_tool

import sce_video
from sce_video import features
from sce_video.data import manifest
from sce_video.data.decode import open_video
from sce_video.data.manifest import Video


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the tiny recipe."""
    folder = tmp_path_factory.mktemp("run")
    result = run_tool("pretrain", *TINY_RECIPE, f"data.train={videos / 'train.csv'}", "out=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def by_hand(encoder: torch.nn.Module, path: str) -> torch.Tensor:
    """Two clips of 4 frames over 0.8 s, three crops of 37 px each, one view at a time."""
    outputs = []
    with open_video(path) as video:  # 60 frames of 48 x 64 at 30 per second
        for indices in ([0, 8, 16, 24], [36, 43, 51, 59]):
            clip = video.read(indices).permute(3, 0, 1, 2).float() / 255
            clip = torch.stack([F.interpolate(c[:, None], (37, 49), mode="bilinear")[:, 0] for c in clip])
            for left in (0, 6, 12):
                outputs.append(encoder(clip[None, :, :, :, left : left + 37])[0])
    return torch.stack(outputs).mean(0)


def test_features_equal_one_view_at_a_time(videos: Path, run: Path) -> None:
    encoder = sce_video.load_encoder(run)
    listed = manifest.read(videos / "val.csv")
    views = features.Views(clips_per_video=2, num_crops=3, num_frames=4, clip_seconds=0.8, size=37)
    result = features.extract(encoder, listed, views, device=torch.device("cpu"))
    assert result.rows == list(range(8))
    for row, video in enumerate(listed):
        assert torch.allclose(result.features["backbone"][row], by_hand(encoder, video.path), atol=1e-6)
    more = features.extract(encoder, listed, views, device=torch.device("cpu"), workers=2)
    assert torch.equal(more.features["backbone"], result.features["backbone"])


def test_unreadable_videos_are_listed_and_not_scored(videos: Path, run: Path, tmp_path: Path) -> None:
    listed = [*manifest.read(videos / "val.csv")[:3], Video(str(tmp_path / "gone.mp4"), "0")]
    listed[1], listed[3] = listed[3], listed[1]
    views = features.Views(clips_per_video=1, num_crops=1, num_frames=4, clip_seconds=0.8, size=37)
    result = features.extract(sce_video.load_encoder(run), listed, views, device=torch.device("cpu"))
    assert result.rows == [0, 2, 3]
    assert [failure.path for failure in result.failures] == [str(tmp_path / "gone.mp4")]


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
    assert refused.returncode == 2
    assert "exists" in refused.stderr
    assert first.read_bytes() == before


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
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_encoder_from_a_moved_run_folder(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "elsewhere")
    clips = torch.rand(1, 3, 4, 32, 32)
    encoder = sce_video.load_encoder(tmp_path / "elsewhere")
    assert not encoder.training
    assert torch.equal(encoder(clips), sce_video.load_encoder(run / "checkpoints")(clips))
    assert encoder.clip == {"num_frames": 4, "clip_seconds": 0.8, "size": 32}
    assert np.isfinite(encoder(clips).numpy()).all()
