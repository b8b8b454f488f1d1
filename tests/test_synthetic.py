"""The built-in videos: deterministic, real H.264, and not given away by colour."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sce_video.data import manifest, synthetic
from sce_video.evaluation import metrics


@pytest.fixture(scope="module")
def rendered() -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    """Three frames of 192 train and 96 val videos, and their labels."""
    result = {}
    for split, count in (("train", 192), ("val", 96)):
        frames, labels = zip(*(synthetic.render(split, index) for index in range(count)), strict=True)
        result[split] = (np.stack([clip[[0, 40, 80]] for clip in frames]), torch.tensor(labels))
    return result


def histograms(frames: np.ndarray) -> torch.Tensor:
    """Joint 4 x 4 x 4 colour histogram of each video's frames."""
    bins = frames.reshape(len(frames), -1, 3).astype(int) // 64
    codes = bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]
    return torch.tensor(np.stack([np.bincount(code, minlength=64) for code in codes])).float()


@pytest.mark.slow
def test_colour_does_not_give_the_class_away(rendered: dict[str, tuple[np.ndarray, torch.Tensor]]) -> None:
    """16 classes: chance is 6 %."""
    (bank, bank_labels), (query, query_labels) = rendered["train"], rendered["val"]
    recall = metrics.recall_at_k(histograms(query), query_labels, histograms(bank), bank_labels, ks=(1,), center=False)
    assert recall[1] < 0.15


def test_rendering_is_deterministic_and_splits_differ() -> None:
    first, label = synthetic.render("train", 5)
    again, _ = synthetic.render("train", 5)
    other, other_label = synthetic.render("val", 5)
    assert first.shape == (120, 64, 80, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert label == other_label == 5
    assert not np.array_equal(first, other)


def test_a_class_is_a_shape_and_a_motion() -> None:
    assert len(set(synthetic.CLASSES)) == 16
    assert set(Counter(shape for shape, _ in synthetic.CLASSES).values()) == {2}
    assert set(Counter(motion for _, motion in synthetic.CLASSES).values()) == {2}


def test_build_makes_real_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "VIDEOS", {"train": 4, "val": 2})
    progress: list[tuple[int, int]] = []
    folder = synthetic.build(tmp_path / "videos", progress=lambda *done: progress.append(done), jobs=2)
    assert progress[-1] == (6, 6)
    train, val = (manifest.read(folder / f"{split}.csv") for split in ("train", "val"))
    assert [video.label for video in train] == list(synthetic.CLASS_NAMES[:4])
    assert len(val) == 2
    with av.open(train[0].path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 30, 120)
        assert sum(packet.is_keyframe for packet in container.demux(stream) if packet.size) == 1
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    assert synthetic.build(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")} == times
    assert not list(tmp_path.glob(".videos*")), "no work folder is left"
    frames, _ = synthetic.render("train", 0)
    synthetic.encode(tmp_path / "again.mp4", frames)
    assert (tmp_path / "again.mp4").read_bytes() == Path(train[0].path).read_bytes()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SCE_VIDEO_CACHE", raising=False)
    assert synthetic.cache_folder() == tmp_path / "xdg/sce_video"
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "own"))
    assert synthetic.cache_folder() == tmp_path / "own"
