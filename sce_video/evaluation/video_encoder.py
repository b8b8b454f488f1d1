"""The encoder of the Python interface: it reads videos, and refuses clips that it would turn into garbage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import distributed
from ..data import clips as clip_times
from ..data import loader
from ..data.dataset import EvaluationDataset
from ..data.decode import DecodeError, open_row
from ..data.manifest import Video
from ..errors import InputError
from ..models.encoder import FrozenEncoder
from .extract import extract
from .views import NATIVE_SHORT_SIDE, Views, cut_crops, test_size

TOLERANCE = 0.01  # by which float pixels may leave 0..1, e.g. by rounding


class VideoEncoder(FrozenEncoder):
    """A `FrozenEncoder` that checks its clips, and reads them: `encoder(encoder.read("a.mp4"))`."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return features [B, width] of uint8 clips in 0..255 or float clips in 0..1, [B, 3, T, H, W].

        Raises InputError for another layout, type, range or size.
        """
        check_clips(clips)
        try:
            return super().forward(clips)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            frames, size = (int(self.clip[name]) for name in ("num_frames", "size")) if self.clip else (0, 0)
            raise InputError(
                f"{self.name} cannot take clips {list(clips.shape)} on {clips.device}: {str(error).splitlines()[0]}; it was "
                f"trained on {frames} frames of {size} px"
            ) from error

    def views(self, clips: int = 10, crops: int = 3) -> Views:
        """Return evaluation's views of a video: `clips` evenly spread clips x `crops` (1 or 3) of 8/7 of the training size."""
        if clips < 1 or crops not in (1, 3):
            raise InputError(f"clips ({clips}) must be at least 1 and crops ({crops}) 1 or 3")
        frames, seconds, size = int(self.clip["num_frames"]), self.clip["clip_seconds"], test_size(int(self.clip["size"]))
        return Views(clips, crops, frames, seconds, size)

    def read(
        self, video: str | Path | Tensor | NDArray[Any], *, clips: int = 10, crops: int = 3, fps: float | None = None
    ) -> Tensor:
        """Return the views of a video, float in 0..1 [clips * crops, 3, T, S, S], as evaluation cuts them.

        video: a path, or all its frames, uint8 [N, H, W, 3]. fps: rate of such frames; without it they are one clip (clips=1).
        Raises InputError for a video that cannot be read, and for frames of another type or layout.
        """
        views = self.views(clips, crops)
        if isinstance(video, (str, Path)):
            options: dict[str, Any] = {
                "clips_per_video": clips,
                "num_frames": views.num_frames,
                "clip_seconds": views.clip_seconds,
            }
            rows = [Video(os.fspath(video), None)]
            sample = EvaluationDataset(rows, max_short_side=max(NATIVE_SHORT_SIDE, views.size), **options)[0]
            if sample.failures:
                raise InputError(sample.failures[0].reason)
            found = [clip for clip in sample.clips if isinstance(clip, Tensor)]
        else:
            found = _cut_clips(torch.as_tensor(video), views, fps)
        return torch.cat([cut_crops(clip, size=views.size, num_crops=crops) for clip in found])


def check_clips(clips: Tensor) -> None:
    """Raise InputError for clips that are not uint8 in 0..255 or float in 0..1, [B, 3, T, H, W]. Reads the range."""
    if not isinstance(clips, Tensor):
        raise InputError(f"clips must be a tensor [B, 3, T, H, W], not {type(clips).__name__}: encoder.read makes one")
    shape = list(clips.shape)
    if clips.ndim != 5 or shape[1] != 3:
        advice = "add the batch: clips[None]" if clips.ndim == 4 and shape[0] == 3 else "encoder.read makes them"
        if clips.ndim == 5:
            advice = "swap the axes: clips.transpose(1, 2)" if shape[2] == 3 else advice
            advice = "move the colours: clips.permute(0, 4, 1, 2, 3)" if shape[4] == 3 else advice
        raise InputError(f"clips must be [B, 3, T, H, W], not {shape}: {advice}")
    if 0 in shape:
        raise InputError(f"clips {shape} are empty")
    if clips.dtype == torch.uint8:
        return
    if not clips.is_floating_point():
        raise InputError(f"clips must be uint8 in 0..255 or float in 0..1, not {clips.dtype}: clips.to(torch.uint8)")
    low, high = (value.item() for value in clips.detach().aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        advice = "divide by 255" if low >= 0 and high <= 256 else "do not normalise, the encoder does"
        raise InputError(f"float clips must lie in 0..1, these in {low:g}..{high:g}: {advice}")


def _cut_clips(frames: Tensor, views: Views, fps: float | None) -> list[Tensor]:
    """Return the clips [T, H, W, 3] of a video that is given as frames."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.dtype != torch.uint8:
        raise InputError(f"frames must be uint8 [N, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if fps is None and views.clips_per_video > 1:
        raise InputError(f"frames without their rate are one clip: give fps=, or clips=1 instead of {views.clips_per_video}")
    if fps is None:
        return [frames[clip_times.uniform_subsample(len(frames), views.num_frames)]]
    if not fps > 0:
        raise InputError(f"fps ({fps}) must be above 0")
    rate = Fraction(fps).limit_denominator(100_000)
    times = clip_times.constant_clips(len(frames) / rate, views.clip_seconds, views.clips_per_video)
    windows = (clip_times.frame_window(rate, *time, len(frames)) for time in times)
    return [frames[first + clip_times.uniform_subsample(last - first, views.num_frames)] for first, last in windows]


class Embedding(NamedTuple):
    """Features and times of videos, one row per path, see `embed`.

    features: float32 [N, width]. times: float64 [N, clips, 2], start and end of each clip, seconds since the first frame.
    """

    features: NDArray[np.float32]
    times: NDArray[np.float64]


def embed(
    paths: str | Path | Sequence[str | Path],
    encoder: FrozenEncoder,
    *,
    clips: int = 10,
    crops: int = 3,
    projector: bool = False,
    device: str = "auto",
    decoder: str = "auto",
    workers: int = 0,
    cache: bool = False,
) -> Embedding:
    """Return the features of videos: the mean over clips x crops, the numbers of tools/features.py for the same files.

    paths: files, or folders of pictures. projector: the projector's output instead. workers: decoding processes; -1: by the
    cores. cache: keep features on disk and take known ones from there. Raises InputError for a file that cannot be read.
    """
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not listed:
        raise InputError("paths is empty: there is nothing to embed")
    if projector and encoder.projector is None:
        raise InputError(f"projector=True: this {encoder.name} encoder has none, only the backbone")
    videos = [Video(os.path.abspath(path), None) for path in listed]
    plain = FrozenEncoder.__new__(FrozenEncoder)  # the same modules without the checks: these clips are ours
    plain.__dict__ = encoder.__dict__
    views = VideoEncoder.views(encoder, clips, crops)  # type: ignore[arg-type]
    kind = "projector" if projector else "backbone"
    with distributed.session(device) as where:
        options: dict[str, Any] = {"decoder": decoder, "workers": loader.share_cores(where, workers), "cached": cache}
        found = extract(plain.to(where), videos, views, device=where, kinds=(kind,), **options)
    if found.failures:
        raise InputError(f"{len(found.failures)} of {len(videos)} videos cannot be read, e.g. {found.failures[0].reason}")
    times = np.empty((len(videos), clips, 2))
    for row, video in enumerate(videos):
        try:
            with open_row(video, decoder) as reader:
                times[row] = clip_times.constant_clips(reader.seconds, views.clip_seconds, clips)
        except DecodeError as error:
            raise InputError(str(error)) from error
    return Embedding(found.features[kind].numpy(), times)
