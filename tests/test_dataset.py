"""Samples and their order depend on the seed only, whichever process decodes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sce_video.data import decode, loader, manifest
from sce_video.data.crops import RandomResized, RandomScaled
from sce_video.data.dataset import Batch, ClipDataset, EvaluationDataset, Packed, collate
from sce_video.data.decode import DecodeError, open_video
from sce_video.data.manifest import Video
from sce_video.data.readers.reader import FrameReader
from sce_video.errors import InputError

BOX = RandomResized((0.3, 0.8), (0.75, 4 / 3))


def dataset(videos: Path, **options: object) -> ClipDataset:
    settings: dict[str, object] = {
        "num_frames": 4,
        "clip_seconds": 0.8,
        "draw_boxes": [BOX, BOX],
        "difference_probability": 0.3,
        "seed": 1,
    }
    return ClipDataset(manifest.read(videos / "train.csv"), **{**settings, **options})  # type: ignore[arg-type]


def sampler(**options: int) -> loader.StepSampler:
    settings = {"seed": 3, "num_rows": 24, "batch": 8, "accumulate": 1, "rank": 0, "world_size": 1}
    return loader.StepSampler(**{**settings, "start_step": 0, "total_steps": 9, **options})


def flat(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [
        (batch.rows, batch.epochs, batch.differences, [view.pixels.sum().item() for view in batch.views]) for batch in batches
    ]


def test_same_clips_for_any_number_of_workers(videos: Path) -> None:
    results = []
    for workers in (0, 1, 3):
        batches = list(loader.build(dataset(videos), sampler(total_steps=4), workers=workers, pin_memory=False))
        results.append(batches)
    assert flat(results[0]) == flat(results[1]) == flat(results[2])
    for one, other in zip(results[0], results[2], strict=True):
        for a, b in zip(one.views, other.views, strict=True):
            assert torch.equal(a.pixels, b.pixels)
            assert torch.equal(a.shapes, b.shapes)


def test_epochs_are_permutations_and_differ() -> None:
    epochs: dict[int, list[int]] = {}
    for micro_batch in sampler():
        for epoch, row in micro_batch:
            epochs.setdefault(epoch, []).append(row)
    assert list(epochs) == [0, 1, 2]
    assert all(sorted(rows) == list(range(24)) for rows in epochs.values())
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(24))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_a_global_batch_in_contiguous_blocks(world_size: int, accumulate: int) -> None:
    whole = list(sampler())
    parts = [list(sampler(rank=rank, world_size=world_size, accumulate=accumulate)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        micro = slice(step * accumulate, (step + 1) * accumulate)
        assert [row for part in parts for micro_batch in part[micro] for row in micro_batch] == batch


def test_resuming_is_starting_later() -> None:
    assert list(sampler(start_step=5)) == list(sampler())[5:]
    assert len(sampler(start_step=5)) == 4


def test_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"optim.batch \(25\) is larger than the data \(24 videos\)"):
        sampler(batch=25)
    with pytest.raises(InputError, match="must be divisible by"):
        sampler(batch=9, world_size=2)


def test_clips_are_the_frames_and_boxes_that_were_drawn(videos: Path) -> None:
    """Read the whole video, crop it as the data set does, and compare."""
    data = dataset(videos, difference_probability=0.0)
    sample = data[(2, 5)]
    with open_video(data.videos[5].path) as video:
        whole = video.read(range(video.num_frames))
    for clip in sample.clips:
        frames, height, width, _ = clip.shape
        assert frames == 4
        assert any(
            torch.equal(clip[0], whole[t, top : top + height, left : left + width])
            for t in range(len(whole))
            for top in range(48 - height + 1)
            for left in range(64 - width + 1)
        )


def test_local_views_leave_the_others_as_they_were(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two local views leave the bytes of the two global ones unchanged, and a video is opened once."""
    opened = []

    def counted(path: str, *rest: str, **named: str) -> FrameReader:
        opened.append(path)
        return open_video(path, *rest, **named)

    monkeypatch.setattr(decode, "open_video", counted)
    small = RandomResized((0.05, 0.1), (0.75, 4 / 3))
    plain = dataset(videos)
    more = dataset(videos, draw_boxes=[BOX, BOX, small, small])
    scaled = dataset(videos, draw_boxes=[BOX, BOX, small, small], resize_to=[20, 20, 8, 8])
    for row in range(8):
        before, after, worker = plain[1, row], more[1, row], scaled[1, row]
        assert len(after.clips) == 4
        assert after.differences[:2] == before.differences
        assert all(torch.equal(a, b) for a, b in zip(before.clips, after.clips[:2], strict=True))
        areas = [clip.shape[1] * clip.shape[2] / (48 * 64) for clip in after.clips]
        assert min(areas[:2]) > 0.25
        assert max(areas[2:]) < 0.12
        assert not torch.equal(after.clips[2].float().mean(dim=(1, 2, 3)), after.clips[3].float().mean(dim=(1, 2, 3)))
        for native, clip, size in zip(after.clips, worker.clips, [20, 20, 8, 8], strict=True):
            large = min(native.shape[1:3]) > size
            assert clip.shape[1:3] == ((size, size) if large else native.shape[1:3])
    assert len(opened) == 3 * 8


def test_samples_differ_by_epoch_and_view_only(videos: Path) -> None:
    data = dataset(videos)
    again, next_epoch = data[(0, 3)], data[(1, 3)]
    assert all(torch.equal(a, b) for a, b in zip(data[(0, 3)].clips, again.clips, strict=True))
    assert again.clips[0].shape != again.clips[1].shape or not torch.equal(*again.clips)
    assert again.clips[0].shape != next_epoch.clips[0].shape or not torch.equal(again.clips[0], next_epoch.clips[0])


def test_temporal_difference_takes_native_neighbours(videos: Path) -> None:
    sample = dataset(videos, difference_probability=1.0)[(0, 0)]
    assert sample.differences == [True, True]
    assert all(len(clip) == 8 for clip in sample.clips)
    rate = [dataset(videos)[(epoch, 0)].differences for epoch in range(60)]
    share = sum(flag for pair in rate for flag in pair) / 120
    assert 0.15 < share < 0.45
    assert [True, False] in rate, "each view decides for itself"
    assert [False, True] in rate


def test_unreadable_video_is_replaced_by_a_fixed_rule(videos: Path, tmp_path: Path) -> None:
    data = dataset(videos)
    bad = Video(str(tmp_path / "missing.mp4"), None)
    data.videos = [bad if row == 5 else video for row, video in enumerate(data.videos)]
    first, second = data[(0, 5)], data[(0, 5)]
    assert first.path == second.path != bad.path
    assert [failure.path for failure in first.failures] == [bad.path]
    assert first.row == 5
    paths = {data[(epoch, 5)].path for epoch in range(6)}
    assert len(paths) > 1, "the substitute changes with the epoch"
    data.videos = [bad] * 24
    with pytest.raises(DecodeError, match="row 0 and 9 substitutes could not be read"):
        data[(0, 0)]


def test_evaluation_never_replaces(videos: Path, tmp_path: Path) -> None:
    listed = [*manifest.read(videos / "val.csv")[:2], Video(str(tmp_path / "missing.mp4"), "0")]
    data = EvaluationDataset(listed, clips_per_video=3, num_frames=4, clip_seconds=0.8)
    batch = collate([data[row] for row in range(3)])
    assert batch.rows == [0, 1]
    assert [failure.path for failure in batch.failures] == [listed[2].path]
    assert [len(view.unpack()) for view in batch.views] == [2, 2, 2]
    assert collate([data[2]]).views == []


def test_evaluation_clips_are_evenly_spread(videos: Path) -> None:
    listed = manifest.read(videos / "val.csv")[:1]
    data = EvaluationDataset(listed, clips_per_video=2, num_frames=4, clip_seconds=0.8)
    with open_video(listed[0].path) as video:  # 60 frames at 30 per second: clips [0, 0.8) and [1.2, 2)
        expected = [video.read([0, 8, 16, 24]), video.read([36, 43, 51, 59])]
    for clip, frames in zip(data[0].clips, expected, strict=True):
        assert torch.equal(clip, frames)


def test_packing_is_lossless() -> None:
    clips = [torch.randint(256, shape, dtype=torch.uint8) for shape in ((2, 3, 5, 3), (4, 1, 1, 3), (1, 7, 2, 3))]
    for clip, unpacked in zip(clips, Packed.pack(clips).unpack(), strict=True):
        assert torch.equal(clip, unpacked)


def test_no_readable_video_is_said_before_training(tmp_path: Path) -> None:
    listed = [Video(str(tmp_path / f"{i}.mp4"), None) for i in range(40)]
    with pytest.raises(InputError, match=r"none of 32 videos tried \(of 40\) can be read"):
        loader.check_readable(listed, seed=0, decoder="auto")


def test_a_video_that_hangs_the_decoder_does_not_hang_the_start(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened in a process that is ended; the next video is tried."""
    good = manifest.read(videos / "train.csv")[0]
    open_good = loader.open_row

    def hang(video: Video, decoder: str) -> Any:
        while video.path == "hangs.mp4":
            time.sleep(60)
        return open_good(video, decoder)

    monkeypatch.setattr(loader, "open_row", hang)
    monkeypatch.setattr(loader, "OPEN_SECONDS", 0.5)
    hanging = Video("hangs.mp4", None)
    loader.check_readable([hanging, good._replace(health="ok")], seed=0, decoder="auto")
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"none of 3 videos tried \(of 40\) can be read, e.g. hangs.mp4: the decoder hung or crashed"
    ):
        loader.check_readable([hanging] * 40, seed=0, decoder="auto")
    assert time.monotonic() - began < 20


def test_a_replaced_video_says_whose_place_it_took(videos: Path, tmp_path: Path) -> None:
    """Supervised training needs the label of the video that was read, not that of the replaced row."""
    listed = manifest.read(videos / "train.csv")[:4]
    listed[2] = Video(str(tmp_path / "gone.mp4"), "9")
    data = ClipDataset(listed, num_frames=4, clip_seconds=0.8, draw_boxes=[RandomScaled(32, (37, 46))], seed=1)
    batch = collate([data[0, row] for row in range(4)])
    assert batch.rows == [0, 1, 2, 3]
    assert batch.sources[:2] + batch.sources[3:] == [0, 1, 3]
    assert batch.sources[2] != 2
    assert batch.paths == [listed[source].path for source in batch.sources]


def test_speed_and_jitter_change_the_frames_and_nothing_else(videos: Path) -> None:
    """Boxes and starts have separate draws: the clip keeps its start and box, only its frames move."""
    plain, moved = (dataset(videos, difference_probability=0.0), dataset(videos, difference_probability=0.0, frame_jitter=1.0))
    changed = 0
    for row in range(6):
        one, other = plain[0, row], moved[0, row]
        assert [clip.shape for clip in one.clips] == [clip.shape for clip in other.clips]
        changed += sum(not torch.equal(a, b) for a, b in zip(one.clips, other.clips, strict=True))
        again = moved[0, row]
        assert all(torch.equal(a, b) for a, b in zip(other.clips, again.clips, strict=True))
    assert changed > 6
    fast = dataset(videos, difference_probability=0.0, speed=(2.0, 2.0))
    double = dataset(videos, difference_probability=0.0, clip_seconds=1.6)
    for row in range(3):
        assert all(torch.equal(a, b) for a, b in zip(fast[0, row].clips, double[0, row].clips, strict=True))
