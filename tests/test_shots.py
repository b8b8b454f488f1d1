"""The doctor finds planted cuts to the frame, takes neither motion nor flashes for cuts, and clips keep within a shot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import numbered_frames
from long_files import all_frames, encode_scene, join
from media.shots import Cuts
from test_data_prep_lists import program

from sce_video.data import manifest
from sce_video.data.crops import Box
from sce_video.data.dataset import ClipDataset

LENGTHS = (37, 60, 12, 90, 5, 41)  # frames of each shot; the fifth is too short to be kept


def whole(height: int, width: int, _: torch.Generator) -> Box:
    return Box(0, 0, height, width)


def cuts_of(frames: list[np.ndarray]) -> list[int]:
    cuts = Cuts()
    for frame in frames:
        cuts.add(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame, dtype=np.uint8), format="rgb24"))
    return cuts.found


def test_motion_and_flashes_are_no_cuts_and_a_cut_beside_motion_is() -> None:
    random = np.random.default_rng(0)
    wide = random.integers(0, 255, (12, 200, 3)).repeat(8, axis=0).repeat(8, axis=1)
    moving = [wide[:, 16 * t : 16 * t + 128] for t in range(60)]  # an eighth of the picture a frame
    assert cuts_of(moving) == []
    flash = [*moving[:20], np.full_like(moving[0], 255), *moving[20:40]]
    assert cuts_of(flash) == []
    still = [np.full((96, 128, 3), 30)] * 30
    assert cuts_of([*still, *moving[:1] * 20, *still]) == [30, 50]
    fade = [np.full((96, 128, 3), value) for value in np.linspace(0, 255, 60)]
    assert cuts_of(fade) == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_planted_cuts_are_found_and_no_clip_crosses_one(ending: str, tmp_path: Path) -> None:
    scenes = [encode_scene(tmp_path / f"{s}.mp4", 50 + s, num_frames=length) for s, length in enumerate(LENGTHS)]
    path = join(scenes, tmp_path / f"long.{ending}")
    (tmp_path / "x.csv").write_text(f"path,label\n{path.name},a\n")
    result = program("doctor", tmp_path / "x.csv", "--out", tmp_path / "health", "--jobs", "1", "--shots")
    assert result.returncode == 0, result.stderr
    assert "5 shots of 1 files (1 shorter than 8 frames left out)" in result.stdout
    edges = np.cumsum([0, *LENGTHS]).tolist()
    expected = [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b - a >= 8]
    shots = manifest.read(tmp_path / "health/shots.csv")
    assert [(shot.start, shot.end, shot.label) for shot in shots] == [(*pair, "a") for pair in expected]
    numbers = {frame.numpy().tobytes(): number for number, frame in enumerate(all_frames(path))}
    data = ClipDataset(shots, num_frames=6, clip_seconds=1.0, draw_boxes=[whole] * 2, seed=0)
    for row, (start, end) in enumerate(expected):
        for epoch in range(15):
            found = [numbers[f.numpy().tobytes()] for clip in data[epoch, row].clips for f in torch.as_tensor(clip)]
            assert start <= min(found) <= max(found) < end


@pytest.mark.slow
def test_cuts_within_one_encoded_video_are_found(tmp_path: Path) -> None:
    """Not at key frames: the encoder puts none there."""
    from test_decode import encode

    parts = [numbered_frames(14, 48, 64), 255 - numbered_frames(16, 48, 64), numbered_frames(12, 48, 64)]
    encode(tmp_path / "x.mp4", np.concatenate(parts), g="250", sc_threshold="0")
    (tmp_path / "x.csv").write_text("path\nx.mp4\n")
    result = program("doctor", tmp_path / "x.csv", "--out", tmp_path / "health", "--jobs", "1", "--shots")
    assert result.returncode == 0, result.stderr
    assert [(shot.start, shot.end) for shot in manifest.read(tmp_path / "health/shots.csv")] == [(0, 14), (14, 30), (30, 42)]


def test_shots_of_segments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,start,end\nx.mp4,0,2\n")
    refused = program("doctor", tmp_path / "x.csv", "--out", tmp_path / "health", "--shots")
    assert refused.returncode == 70
    assert "--shots decodes every frame of whole videos" in refused.stderr
