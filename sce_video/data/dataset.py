"""From a row of the manifest to clips: random views for training, evenly spread clips for evaluation.

One open and one decode pass per video, for all its clips. Clips leave the worker as uint8 crops of their native size
and are resized on the device: no rounding, and mostly fewer bytes than the resized clip. They may travel as the planes of
the file (half the bytes of RGB) and become RGB there. Clips of different sizes share one flat buffer (`Packed`).

Everything random is keyed by (seed, epoch, row, view): a sample does not depend on the worker, rank or order.
A video that cannot be read is replaced in training by one drawn from (seed, epoch, row, attempt), and reported; in
evaluation it is reported and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ..randomness import generator
from . import clips as clip_times
from . import crops, health
from .decode import DecodeError, open_video
from .manifest import Video
from .packed import Clip, Packed
from .readers.planes import PlanarClip

DrawBox = Callable[[int, int, torch.Generator], crops.Box]  # (height, width, generator) -> the part of the frame

ATTEMPTS = 10  # substitutes tried before the run stops: by then the data is not there at all


class Failure(NamedTuple):
    """A video that could not be read, and why."""

    path: str
    reason: str


@dataclass
class Sample:
    """One row's clips, T frames each (2 T where `differences` says so, see augment.apply)."""

    row: int
    path: str
    source: int = -1  # the row whose video was read: another one where a video had to be replaced
    epoch: int = 0
    clips: list[Clip] = field(default_factory=list)
    differences: list[bool] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Batch:
    """Samples by view: `views[v]` holds view v of every sample. Samples without clips are only among the failures."""

    rows: list[int]
    sources: list[int]
    epochs: list[int]
    views: list[Packed]
    differences: list[list[bool]]
    paths: list[str]
    failures: list[Failure]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader; a method of this name is its protocol."""
        self.views = [view.pin_memory() for view in self.views]
        return self


@dataclass(frozen=True)
class RandomResized:
    """Boxes for pretraining, see `crops.random_resized`."""

    area: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> crops.Box:
        return crops.random_resized(height, width, area=self.area, ratio=self.ratio, generator=generator)


@dataclass(frozen=True)
class RandomScaled:
    """Boxes for training with labels, see `crops.random_scaled`."""

    size: int
    short_sides: tuple[int, int]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> crops.Box:
        return crops.random_scaled(height, width, size=self.size, short_sides=self.short_sides, generator=generator)


class ClipDataset(Dataset[Sample]):
    """Random views of the videos, for training. Indexed by (epoch, row).

    Args:
        videos: the manifest.
        num_frames: frames per clip, spread evenly over clip_seconds.
        clip_seconds: length of a clip; shorter videos give what they have.
        draw_boxes: for each view which part of the frame its clip shows; `RandomResized` or `RandomScaled`. There are as
            many views, each with its own random start.
        difference_probability: per clip, to become a temporal difference.
        speed: range of the factor by which a clip's time is stretched, see `clips.playback_speed`.
        frame_jitter: how far each frame may move in time, see `clips.jittered_subsample`.
        seed: of the run.
        decoder, loop_filter: see `decode.open_video`.
        planes: clips travel as the file's planes where it has 4:2:0 ones; on x86 the RGB they become is the same to the bit.
        resize_to: for each view the size; boxes larger than it in both directions leave the worker as squares of it, bilinear
            and rounded: fewer bytes from large frames, but clips are rounded twice. None: they leave it in their size.
        antialias: whether they are smoothed before, as augment.antialias says of the device.
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
        decoder: str = "auto",
        loop_filter: str = "exact",
        planes: bool = False,
        resize_to: Sequence[int] | None = None,
        antialias: bool = False,
    ) -> None:
        self.videos = videos
        self.speed = speed
        self.frame_jitter = frame_jitter
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
        self.before_reading: Callable[[int], None] | None = None  # gets the row; may raise DecodeError

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        """Return the sample of (epoch, row). A video that cannot be read is replaced; DecodeError after ATTEMPTS replacements."""
        epoch, row = index
        failures: list[Failure] = []
        for attempt in range(ATTEMPTS):
            source = row
            if attempt:
                draw = generator(self.seed, "substitute", epoch, row, attempt)
                source = int(torch.randint(len(self.videos), (), generator=draw))
            path = self.videos[source].path
            try:
                if self.before_reading is not None:
                    self.before_reading(source)
                clips, differences = self._views(path, epoch, row)
            except DecodeError as error:
                failures.append(Failure(path, str(error)))
                continue
            return Sample(row, path, source, epoch, clips, differences, failures)
        tried = "\n  ".join(failure.reason for failure in failures)
        raise DecodeError(f"row {row} and {ATTEMPTS - 1} substitutes could not be read:\n  {tried}")

    def _views(self, path: str, epoch: int, row: int) -> tuple[list[Clip], list[bool]]:
        with open_video(path, self.decoder, loop_filter=self.loop_filter) as video:
            indices, differences, boxes = [], [], []
            for view, draw_box in enumerate(self.draw_boxes):
                draw = generator(self.seed, "clip", epoch, row, view)
                timing = generator(self.seed, "time", epoch, row, view)  # its own, so that the other draws stay
                seconds = self.clip_seconds
                if self.speed != (1.0, 1.0):
                    seconds *= clip_times.playback_speed(*self.speed, timing)
                start, end = clip_times.random_clip(video.seconds, seconds, draw)
                boxes.append(draw_box(video.height, video.width, draw))
                difference = torch.rand((), generator=draw).item() < self.difference_probability
                first, last = clip_times.frame_window(video.fps, start, end, video.num_frames)
                index = first + clip_times.uniform_subsample(last - first, self.num_frames)
                if self.frame_jitter:
                    index = first + clip_times.jittered_subsample(
                        last - first, self.num_frames, self.frame_jitter, timing
                    )
                # One frame has no neighbour to differ from: such a clip stays as it is.
                difference = difference and last - first > 1
                if difference:
                    index = torch.cat(clip_times.neighbours(index, first, last))
                indices.append(index)
                differences.append(difference)
            planar = video.read_planes(indices, boxes) if self.planes else None
            clips: list[Clip] = [*planar] if planar is not None else [*video.read_clips(indices, boxes)]
        if self.resize_to is not None:
            clips = [
                _scaled_down(clip, size, antialias=self.antialias)
                for clip, size in zip(clips, self.resize_to, strict=True)
            ]
        return clips, differences


def _scaled_down(clip: Clip, size: int, *, antialias: bool) -> Clip:
    """Scale a clip to a square if it is larger in both directions, as `augment.resize` does; else return it as it is."""
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
    """Evenly spread clips of each video, whole frames, for features. Indexed by row.

    Frames whose short side is above max_short_side are scaled down to it (and rounded) as they are decoded, so that one
    large video does not take gigabytes. A video that cannot be read gives a sample without clips that names the failure.
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
        self.videos = videos
        self.clips_per_video = clips_per_video
        self.num_frames = num_frames
        self.clip_seconds = clip_seconds
        self.max_short_side = max_short_side
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, row: int) -> Sample:
        path = self.videos[row].path
        if health.status_of(self.videos[row]) in health.UNREADABLE:  # not even tried, for it may hang
            known = f"{path}: {self.videos[row].health} (as data_prep/doctor.py found)"
            return Sample(row, path, failures=[Failure(path, known)])
        try:
            with open_video(path, self.decoder) as video:
                times = clip_times.constant_clips(video.seconds, self.clip_seconds, self.clips_per_video)
                windows = [clip_times.frame_window(video.fps, *time, video.num_frames) for time in times]
                indices = [
                    first + clip_times.uniform_subsample(last - first, self.num_frames) for first, last in windows
                ]
                frames = video.read(torch.cat(indices), max_short_side=self.max_short_side)
        except DecodeError as error:
            return Sample(row, path, failures=[Failure(path, str(error))])
        clips: list[Clip] = [*frames.split(self.num_frames)]
        return Sample(row, path, row, clips=clips, differences=[False] * len(clips))


def collate(samples: Sequence[Sample]) -> Batch:
    """Put the samples of a batch together, view by view."""
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
