"""Long videos: rows by duration, positives near each other, reads that touch what they need, an index that is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RECIPE, compose_pretrain, losses, run_tool
from long_files import all_frames, encode_scene, join

from sce_video.data import decode, long_videos
from sce_video.data.clips import neighbouring_clips
from sce_video.data.crops import Box
from sce_video.data.dataset import ClipDataset
from sce_video.data.decode import open_row, open_video
from sce_video.data.manifest import Video
from sce_video.errors import InputError, Preempted, log
from sce_video.programs.pretrain import pretrain
from sce_video.randomness import generator
from sce_video.training import rows

RATE, SCENE = 5, 50  # frames a second, frames in a scene of ten seconds


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return [encode_scene(folder / f"{seed}.mp4", seed, num_frames=SCENE, rate=RATE, gop=10) for seed in range(4)]


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def long_file(request: pytest.FixtureRequest, scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty minutes, of 6,000 frames."""
    return join(scenes * 30, tmp_path_factory.mktemp("long") / f"long.{request.param}")


def whole(height: int, width: int, _: torch.Generator) -> Box:
    return Box(0, 0, height, width)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (2, 5), (0, 1000), (8, 1000), (4, 4)])
def test_starts_are_uniform_over_all_pairs_that_the_gap_allows(low: float, high: float) -> None:
    """Against rejection: pairs drawn anywhere, those that the gap forbids thrown away."""
    room = 10.0
    draws = np.array(
        [
            [float(start) for start in neighbouring_clips(12, [2, 1.5], gap=(low, high), generator=generator(0, "x", seed))]
            for seed in range(6000)
        ]
    )
    gaps = np.abs(draws[:, 0] - draws[:, 1])
    assert gaps.min() >= low - 1e-9
    assert gaps.max() <= min(high, room) + 1e-9
    assert draws.min() >= 0
    assert draws.max() <= room
    if low < high:
        anywhere = np.random.default_rng(0).uniform(0, room, (400_000, 2))
        apart = np.abs(anywhere[:, 0] - anywhere[:, 1])
        allowed = anywhere[(apart >= low) & (apart <= high)]
        for found, expected in ((gaps, np.abs(allowed[:, 0] - allowed[:, 1])), (draws[:, 0], allowed[:, 0])):
            levels = np.quantile(expected, np.linspace(0.05, 0.95, 19))
            shares = (found[:, None] <= levels).mean(axis=0)
            assert np.abs(shares - np.linspace(0.05, 0.95, 19)).max() < 1.63 / np.sqrt(len(found))  # Kolmogorov, 1 %


def test_a_video_too_short_for_the_gap_gives_clips_as_far_apart_as_can_be_and_local_ones_stay_near_both() -> None:
    for seed in range(200):
        starts = neighbouring_clips(5, [2, 2], gap=(30, 60), generator=generator(0, "x", seed))
        assert sorted(map(float, starts)) == [0, 3]
        first, second, *local = map(float, neighbouring_clips(100, [2, 2, 1, 1], gap=(1, 4), generator=generator(0, "y", seed)))
        assert all(abs(start - other) <= 4 + 1e-9 for start in local for other in (first, second))


def test_clips_of_a_row_lie_within_the_gap_in_the_file(scenes: list[Path], tmp_path: Path) -> None:
    path = join(scenes, tmp_path / "x.mp4")
    numbers = {frame.numpy().tobytes(): number for number, frame in enumerate(all_frames(path))}
    data = ClipDataset([Video(str(path), None)], num_frames=2, clip_seconds=2.0, draw_boxes=[whole] * 2, seed=0, gap=(4, 6))
    for epoch in range(60):
        one, other = (numbers[torch.as_tensor(clip)[0].numpy().tobytes()] for clip in data[epoch, 0].clips)
        assert 4 * RATE - 1 <= abs(one - other) <= 6 * RATE + 1


def test_rows_tile_a_video_and_a_segment_without_gap_or_overlap(long_file: Path) -> None:
    parts = [Video(str(long_file), "a", 2), Video(str(long_file), "b", 3, start=100, end=170.5)]
    parts += [Video(str(long_file), "c", 4, start=501, end=1000, in_frames=True)]
    divided = long_videos.divide(parts, 30, decoder="auto")
    assert {label: sum(row.label == label for row in divided) for label in "abc"} == {"a": 40, "b": 2, "c": 3}
    for label, frames in (("a", range(6000)), ("b", range(500, 853)), ("c", range(501, 1000))):
        found: list[int] = []
        for row in divided:
            if row.label == label:
                with open_row(row) as reader:
                    found += range(*reader.window(0, reader.seconds))
        assert found == list(frames)
    assert long_videos.divide(parts[:1], 1200.5, decoder="auto") == parts[:1], "a shorter one keeps its row as it is"


def test_durations_are_read_once_and_a_file_that_cannot_be_keeps_its_row(
    long_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(log, "propagate", True)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [Video(str(long_file), None), Video(str(tmp_path / "broken.mp4"), None)]
    first = long_videos.divide(videos, 60, decoder="auto")
    assert len(first) == 21
    assert first[-1] == videos[1]
    assert any("broken.mp4" in message for message in caplog.messages)
    caplog.clear()
    assert long_videos.divide(videos[:1], 60, decoder="auto") == first[:-1]
    caplog.clear()
    assert long_videos.divide(videos[:1], 60, decoder="auto") == first[:-1]
    assert caplog.messages == [], "nothing is read again"
    for kept in (tmp_path / "cache/durations").iterdir():
        kept.write_bytes(kept.read_bytes()[:-9])
    assert long_videos.divide(videos[:1], 60, decoder="auto") == first[:-1]


def test_the_kept_index_gives_the_same_frames_and_is_found_again_when_damaged(
    long_file: Path, scenes: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(log, "propagate", True)
    expected = torch.cat([all_frames(scene) for scene in scenes])
    wanted = [0, 49, 50, 3777, 5999]

    def read() -> None:
        with open_video(str(long_file)) as reader:
            assert torch.equal(reader.read(wanted), expected[[frame % len(expected) for frame in wanted]])
            assert reader.num_frames == 6000

    read()
    (kept,) = (tmp_path / "cache/frame_indexes").iterdir()
    before = kept.read_bytes()
    read()
    assert caplog.messages == []
    for damaged in (before[: len(before) // 2], b"", bytes([*before[:200], before[200] ^ 255, *before[201:]])):
        kept.write_bytes(damaged)
        read()
        assert "is damaged" in caplog.messages[-1]
        assert kept.read_bytes() == before or len(kept.read_bytes()) == len(before), "written anew"
    os.utime(long_file, ns=(0, 0))
    read()
    assert len(list((tmp_path / "cache/frame_indexes").iterdir())) == 2, "a changed file has another"


def test_an_index_that_belongs_to_another_file_is_found_out(scenes: list[Path], tmp_path: Path) -> None:
    """Its packets contradict it: they are read again, and the frames are right."""
    one, other = (join(parts * 60, tmp_path / f"{n}.mkv") for n, parts in enumerate((scenes[:2], [scenes[2], scenes[3]])))
    with open_video(str(one)) as reader:
        frames = reader.num_frames
    source, target = (decode._index_file(os.path.realpath(path)) for path in (one, other))
    shutil.copy(source, target)
    expected = torch.cat([all_frames(scene) for scene in scenes[2:]])
    with open_video(str(other)) as reader:
        assert reader.num_frames == frames
        assert torch.equal(reader.read([frames - 1, 4321]), expected[[len(expected) - 1, 4321 % len(expected)]])


def test_the_cache_is_listed_and_cleared_by_name(long_file: Path, tmp_path: Path) -> None:
    environment = {"SCE_VIDEO_CACHE": str(tmp_path / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_VIDEO_CACHE", environment["SCE_VIDEO_CACHE"])
        long_videos.divide([Video(str(long_file), None)], 60, decoder="auto")
    listed = run_tool("checkpoint", "cache", cwd=tmp_path, **environment)
    assert "frame_indexes" in listed.stdout
    assert "durations" in listed.stdout
    assert run_tool("checkpoint", "cache", "--clear", "frame_indexes", cwd=tmp_path, **environment).returncode == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["durations"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_two_hour_file_costs_no_more_bytes_per_row_than_one_of_ten_seconds(ending: str, tmp_path: Path) -> None:
    """Both at the same bit rate, 0.5 Mbit/s. The long file's header is read once in a process, which is not in the figure."""
    scenes = [encode_scene(tmp_path / f"{s}.mp4", s, num_frames=SCENE, rate=RATE, gop=10, noise=250) for s in range(3)]
    short, long = join(scenes[:1], tmp_path / f"short.{ending}"), join(scenes * 240, tmp_path / f"long.{ending}")
    with open_video(str(long)) as reader:
        assert reader.seconds == 7200

    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    figures = []
    for path in (short, long):
        data = ClipDataset([Video(str(path), None)], num_frames=8, clip_seconds=2.0, draw_boxes=[whole] * 2, seed=0)
        data[0, 0]
        before = read_so_far()
        for epoch in range(1, 61):
            data[epoch, 0]
        figures.append((read_so_far() - before) / 60)
    print(f"{ending}: {figures[0] / 1e3:.0f} kB a row of the short file, {figures[1] / 1e3:.0f} kB of the long one")
    assert figures[1] < 1.2 * figures[0]


def ten_long(folder: Path, scenes: list[Path]) -> Path:
    for number in range(10):
        join([scenes[(number + k) % 4] for k in range(6)], folder / f"{number}.mp4")
    (folder / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(10)))
    return folder / "list.csv"


def test_the_refusal_of_ten_long_videos_names_the_option(scenes: list[Path], tmp_path: Path) -> None:
    source = ten_long(tmp_path, scenes)
    common = [*TINY_RECIPE, f"data.train={source}", "optim.batch=64", "sce.queue=256"]
    with pytest.raises(InputError, match=r"optim.batch \(64\) is larger than the data \(10 videos\): .*data.seconds_per_row="):
        pretrain(compose_pretrain(*common, f"out={tmp_path}/run"))
    divided, *_ = rows.read(compose_pretrain(*common, "data.seconds_per_row=8").data)
    assert len(divided) == 70
    for wrong in ("data.seconds_per_row=0.1", "data.seconds_per_row=-1", "data.min_gap=-1", "data.max_gap=nan"):
        with pytest.raises(InputError, match="data.(seconds_per_row|min_gap|max_gap)"):
            compose_pretrain(*common, wrong)
    with pytest.raises(InputError, match=r"data.min_gap \(5\) must be from 0 to data.max_gap \(2.0\)"):
        compose_pretrain(*common, "data.min_gap=5", "data.max_gap=2")


@pytest.mark.slow
def test_ten_long_videos_pretrain_and_resume_to_the_bit(scenes: list[Path], tmp_path: Path) -> None:
    options = [*TINY_RECIPE, f"data.train={ten_long(tmp_path, scenes)}", "optim.batch=16", "data.seconds_per_row=8"]
    options += ["data.max_gap=3", "data.min_gap=1", "sce.queue=64"]
    pretrain(compose_pretrain(*options, f"out={tmp_path}/straight"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
        patch.setenv("SCE_VIDEO_FAULT", "term@step=7")
        with pytest.raises(Preempted):
            pretrain(compose_pretrain(*options, f"out={tmp_path}/stopped"))
    pretrain(compose_pretrain(*options, f"out={tmp_path}/stopped", "system.workers=2"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "straight")) == 4 * (70 // 16)
    for processes in (1, 2):
        out = f"{processes}"
        result = run_tool("pretrain", *options, "optim.epochs=1", f"out={out}", cwd=tmp_path, processes=processes)
        assert result.returncode == 0, result.stderr
    one, two = (losses(tmp_path / out) for out in ("1", "2"))
    assert one[0] == pytest.approx(two[0], rel=1e-3)
    assert one == pytest.approx(two, rel=0.05)
    assert json.loads((tmp_path / "2/status.json").read_text())
