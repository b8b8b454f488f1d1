"""The data sets: random views of a video for training, evenly spread clips for evaluation.

Each video is opened once and decoded in one pass for all its clips. The worker returns uint8 crops of their native size
and the device resizes them: no rounding, and usually fewer bytes than the resized clip. Crops may travel as the file's
YUV planes (half the bytes of RGB), converted on the device. Clips of different sizes share one flat buffer (`Packed`).

All randomness is keyed by (seed, epoch, row, view): a sample does not depend on worker, rank or order. An unreadable video
is reported; training also replaces it by one drawn from (seed, epoch, row, attempt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ..randomness import generator
from . import clips as clip_times
from . import crops, health
from .decode import DecodeError, open_row, reading
from .manifest import Video, check_kind
from .packed import Clip, Packed
from .readers.planes import PlanarClip

DrawBox = Callable[[int, int, torch.Generator], crops.Box]  # (height, width, generator) -> box

ATTEMPTS = 10  # videos tried for one row before the run stops: ten failures mean that the data is missing


class Failure(NamedTuple):
    """A video, with its segment if it has one (`Video.name`), that could not be read, and the reason."""

    path: str
    reason: str


@dataclass
class Sample:
    """The clips of one row: T frames each, 2 T where `differences` is True (see `augment.apply`)."""

    row: int
    path: str  # `Video.name` of the row that was read
    source: int = -1  # row of the video that was read; differs from `row` if the video was replaced
    epoch: int = 0
    clips: list[Clip] = field(default_factory=list)
    differences: list[bool] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)  # of each view's frames, seconds of the file; in training only


@dataclass
class Batch:
    """Samples by view: `views[v]` holds view v of every sample. Samples without clips appear in `failures` only."""

    rows: list[int]
    sources: list[int]
    epochs: list[int]
    views: list[Packed]
    differences: list[list[bool]]
    paths: list[str]
    failures: list[Failure]

    def pin_memory(self) -> Batch:
        """Pin the pixels. The DataLoader calls a batch's method of this name."""
        self.views = [view.pin_memory() for view in self.views]
        return self


class ClipDataset(Dataset[Sample]):
    """Random views of the videos, for training: clips, each with its own random start and crop. Indexed by (epoch, row).

    Args:
        videos: the manifest.
        num_frames: frames per clip, evenly spaced over `clip_seconds`.
        clip_seconds: length of a clip; a shorter video gives a shorter clip. 0: the videos are images, each one frame.
        draw_boxes: one `RandomResized` or `RandomScaled` per view.
        difference_probability: probability per clip of becoming a temporal difference (see `augment.temporal_difference`).
        speed: range of the factor that multiplies a clip's length, see `clips.playback_speed`.
        gap: seconds between the starts of a row's clips, see `clips.neighbouring_clips`; by default any.
        frame_jitter: range of each frame's random shift in time, see `clips.jittered_subsample`.
        seed: seed of the run.
        decoder, loop_filter: see `decode.open_video`.
        planes: whether 4:2:0 clips travel as planes; on x86 the converted RGB equals `FrameReader.read_clips` to the bit.
        resize_to: one size per view. The worker resizes boxes larger than it in both directions to squares (bilinear,
            rounded): fewer bytes from large frames, but clips are rounded twice, and JPEG pictures are decoded at a reduced
            size where that suffices. None: boxes keep their size.
        antialias: whether that resizing is antialiased, as `augment.antialias` on the device.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        num_frames: int,
        clip_seconds: float,
        draw_boxes: Sequence[DrawBox],
        seed: int,
        difference_probability: float = 0.0,
        speed: tuple[float, float] = (1.0, 1.0),
        frame_jitter: float = 0.0,
        gap: tuple[float, float] = (0.0, math.inf),
        decoder: str = "auto",
        loop_filter: str = "exact",
        planes: bool = False,
        resize_to: Sequence[int] | None = None,
        antialias: bool = False,
    ) -> None:
        check_kind(videos, clip_seconds)
        self.videos = videos
        self.speed = speed
        self.frame_jitter = frame_jitter
        self.gap = gap
        self.num_frames = num_frames
        self.clip_seconds = clip_seconds
        self.draw_boxes = draw_boxes
        self.difference_probability = difference_probability
        self.seed = seed
        self.decoder = decoder
        self.loop_filter = loop_filter
        self.planes = planes
        self.resize_to = resize_to
        self.antialias = antialias
        self.before_reading: Callable[[int], None] | None = None  # called with the row; may raise DecodeError

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        """Return the sample of (epoch, row), replacing unreadable videos; raise DecodeError after ATTEMPTS of them."""
        epoch, row = index
        failures: list[Failure] = []
        for attempt in range(ATTEMPTS):
            source = row
            if attempt:
                draw = generator(self.seed, "substitute", epoch, row, attempt)
                source = int(torch.randint(len(self.videos), (), generator=draw))
            video = self.videos[source]
            try:
                with reading(video.path):
                    if self.before_reading is not None:
                        self.before_reading(source)
                    clips, differences, times = self._read_views(video, epoch, row)
            except DecodeError as error:
                failures.append(Failure(video.name, str(error)))
                continue
            return Sample(row, video.name, source, epoch, clips, differences, failures, times)
        tried = "; ".join(failure.reason for failure in failures)
        raise DecodeError(f"row {row} and {ATTEMPTS - 1} substitutes could not be read: {tried}")

    def _read_views(self, source: Video, epoch: int, row: int) -> tuple[list[Clip], list[bool], list[list[float]]]:
        with open_row(source, self.decoder, loop_filter=self.loop_filter) as video:
            indices, differences, boxes = [], [], []
            views = range(len(self.draw_boxes))
            # Separate generators, to keep the other draws unchanged.
            timings = [generator(self.seed, "time", epoch, row, view) for view in views]
            lengths = [self.clip_seconds] * len(views)
            if self.speed != (1.0, 1.0):
                lengths = [
                    seconds * clip_times.playback_speed(*self.speed, timings[view]) for view, seconds in enumerate(lengths)
                ]
            near = generator(self.seed, "gap", epoch, row) if self.gap != (0.0, math.inf) else None
            starts = near and clip_times.neighbouring_clips(video.seconds, lengths, gap=self.gap, generator=near)
            for view, (draw_box, timing, seconds) in enumerate(zip(self.draw_boxes, timings, lengths, strict=True)):
                draw = generator(self.seed, "clip", epoch, row, view)
                start, end = clip_times.random_clip(video.seconds, seconds, draw)
                if starts:
                    start, end = starts[view], starts[view] + Fraction(seconds)
                boxes.append(draw_box(video.height, video.width, draw))
                difference = torch.rand((), generator=draw).item() < self.difference_probability
                first, last = video.window(start, end)
                index = first + clip_times.uniform_subsample(last - first, self.num_frames)
                if self.frame_jitter:
                    index = first + clip_times.jittered_subsample(last - first, self.num_frames, self.frame_jitter, timing)
                # A single frame has no difference: such a clip keeps its RGB frame.
                difference = difference and last - first > 1
                if difference:
                    index = torch.cat(clip_times.neighbours(index, first, last))
                indices.append(index)
                differences.append(difference)
            times = [video.seconds_of(index[: self.num_frames]) for index in indices]
            planar = video.read_planes(indices, boxes) if self.planes else None
            clips: list[Clip] = (
                [*planar] if planar is not None else [*video.read_clips(indices, boxes, no_smaller_than=self.resize_to)]
            )
        if self.resize_to is not None:
            clips = [_scale_down(clip, size, antialias=self.antialias) for clip, size in zip(clips, self.resize_to, strict=True)]
        return clips, differences, times


def _scale_down(clip: Clip, size: int, *, antialias: bool) -> Clip:
    """Resize a clip to size x size as `augment.resize` does if both sides are larger; otherwise return it unchanged."""
    height, width = (clip.height, clip.width) if isinstance(clip, PlanarClip) else clip.shape[1:3]
    if min(height, width) <= size:
        return clip
    frames = (clip.rgb() if isinstance(clip, PlanarClip) else clip).permute(0, 3, 1, 2)
    scaled = torch.stack(
        [
            F.interpolate(frame[None].float(), (size, size), mode="bilinear", antialias=antialias)[0].round_().byte()
            for frame in frames
        ]
    )
    return scaled.permute(0, 2, 3, 1).contiguous()


class EvaluationDataset(Dataset[Sample]):
    """Evenly spread clips of each video, uncropped, for evaluation. Indexed by row.

    Frames with a short side above max_short_side are scaled down to it (and rounded) while decoding, so that one large
    video does not take gigabytes. An unreadable video gives a sample without clips, with the failure.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        clips_per_video: int,
        num_frames: int,
        clip_seconds: float,
        max_short_side: int | None = None,
        decoder: str = "auto",
    ) -> None:
        check_kind(videos, clip_seconds)
        self.videos = videos
        self.clips_per_video = clips_per_video
        self.num_frames = num_frames
        self.clip_seconds = clip_seconds
        self.max_short_side = max_short_side
        self.decoder = decoder
        self.before_reading: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, row: int) -> Sample:
        listed = self.videos[row]
        if health.status_of(listed) in health.UNREADABLE:  # never opened: it may hang
            reason = f"{listed.path}: {listed.health} (as data_prep/doctor.py found)"
            return Sample(row, listed.name, failures=[Failure(listed.name, reason)])
        try:
            if self.before_reading:
                self.before_reading(row)
            with open_row(listed, self.decoder) as video:
                times = clip_times.constant_clips(video.seconds, self.clip_seconds, self.clips_per_video)
                windows = (video.window(*time) for time in times)
                indices = [first + clip_times.uniform_subsample(last - first, self.num_frames) for first, last in windows]
                frames = video.read(torch.cat(indices), max_short_side=self.max_short_side)
        except DecodeError as error:
            return Sample(row, listed.name, failures=[Failure(listed.name, str(error))])
        clips: list[Clip] = [*frames.split(self.num_frames)]
        return Sample(row, listed.name, row, clips=clips, differences=[False] * len(clips))


def collate(samples: Sequence[Sample]) -> Batch:
    """Collate samples to a batch, view by view."""
    read = [sample for sample in samples if sample.clips]
    views = range(len(read[0].clips)) if read else range(0)
    return Batch(
        rows=[sample.row for sample in read],
        sources=[sample.source for sample in read],
        epochs=[sample.epoch for sample in read],
        views=[Packed.pack([sample.clips[view] for sample in read]) for view in views],
        differences=[[sample.differences[view] for sample in read] for view in views],
        paths=[sample.path for sample in read],
        failures=[failure for sample in samples for failure in sample.failures],
    )
