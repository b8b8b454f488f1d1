"""The pipeline in few passes, each compiled: the same result as `pipeline`'s operations one after another, to rounding.

On a CPU one clip passes at a time, so that it stays in the cache; on other devices all clips of a batch together, since
there every launch costs and memory is read once. What was drawn is data (`slots.py`), so nothing is compiled again but for
another number of frames or pixels. Crops may have any size.

`EAGER` and `COMPILED` hold the same passes; the first is for tests and for looking into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import geometry, rand_augment, slots, stages
from .blur import gaussian_kernel, reach, reflected
from .draws import Parameters, draw
from .view import View

RADII = (3, 7)  # and the whole kernel: blurs are computed with the next larger one
Passes = Callable[[Callable[..., Any], torch.device], Callable[..., Any]]


def EAGER(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The pass as it is written."""
    return function


@cache
def _compile(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return torch.compile(function, dynamic=dynamic, fullgraph=True)


def COMPILED(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The pass through torch.compile. What changes from call to call: crops on a CPU, elsewhere also the number of clips."""
    return _compile(function, device.type != "cpu" or function in (stages.columns, stages.rows))


def apply(
    view: View,
    clips: Sequence[Tensor],
    drawn: Parameters,
    out: Tensor,
    *,
    mean: float,
    std: float,
    differences: Sequence[bool],
    antialias: bool,
    passes: Passes,
    together: bool,
) -> None:
    """Augment uint8 clips [T, h, w, 3] into `out` [B, 3, T, S, S]; arguments as in `pipeline.apply`.

    together: all clips at once (a GPU) instead of one by one (a CPU).
    """
    told = slots.tell(view, drawn, mean, std)
    batches = [[b] for b in range(len(clips))]
    if together:
        batches = [group for flag in (False, True) if (group := [b for b, d in enumerate(differences) if d == flag])]
    for group in batches:
        resampled = _resample(
            [clips[b] for b in group],
            [bool(drawn.flip[b]) for b in group],
            out.shape[-1],
            difference=differences[group[0]],
            antialias=antialias,
            passes=passes,
            together=together,
        )
        if drawn.operations.shape[1]:
            resampled = rand_augment.apply_drawn(resampled, drawn.operations[group], drawn.magnitudes[group])
        whole = len(group) == len(out) or len(group) == 1
        # Where a group is not a slice of the output it gets one of its own, copied at the end.
        target = out[group[0] : group[0] + len(group)] if whole else torch.empty_like(out[: len(group)])
        _color_and_blur(view, resampled, drawn, group, told, target, passes)
        if not whole:
            out[group] = target


def prepare(view: View, out: Tensor, *, mean: float, std: float, differences: bool, antialias: bool) -> None:
    """Build every pass that clips of this view can need, with grey clips: `out` as in `apply`, at least two clips."""
    frames = out.shape[2]
    for extra in (1, 7):  # two sizes of crops, so that the third is no surprise
        shape = (frames, out.shape[-1] // 2 + extra, out.shape[-1] // 2 + 2 * extra, 3)
        clips = [torch.full(shape, 128, dtype=torch.uint8, device=out.device)] * len(out)
        for order in ([0, 1, 2, 3], [3, 0, 2, 1], [0, 2, 1, 3]):
            for sigma in [*(radius / 5 for radius in RADII), view.blur_sigma_max]:
                one = draw(view, [torch.Generator().manual_seed(0)] * len(clips)).to_dict()
                one |= {
                    "order": torch.tensor([order] * len(clips)),
                    "jitter": torch.full((len(clips),), view.jitter_probability > 0),
                    "blur": torch.full((len(clips),), view.blur_probability > 0),
                    "sigma": torch.full((len(clips),), min(sigma, view.blur_sigma_max), dtype=torch.float64),
                }
                for blur in {bool(one["blur"][0]), view.blur_probability >= 1}:
                    drawn = Parameters.from_dict(one | {"blur": torch.full((len(clips),), blur)})
                    flags = [differences and extra == 1] * len(clips)
                    moved = [torch.cat([clip, clip]) if flag else clip for clip, flag in zip(clips, flags, strict=True)]
                    apply(
                        view,
                        moved,
                        drawn,
                        out,
                        mean=mean,
                        std=std,
                        differences=flags,
                        antialias=antialias,
                        passes=COMPILED,
                        together=out.device.type != "cpu",
                    )


def _resample(
    clips: list[Tensor],
    flips: list[bool],
    size: int,
    *,
    difference: bool,
    antialias: bool,
    passes: Passes,
    together: bool,
) -> Tensor:
    """Return float32 [N, 3, T, S, S] in 0..1, mirrored where `flips` says so."""
    if difference:
        halves = [[clip[: len(clip) // 2] for clip in clips], [clip[len(clip) // 2 :] for clip in clips]]
        now, after = (
            _resample(half, flips, size, difference=False, antialias=antialias, passes=passes, together=together)
            for half in halves
        )
        return geometry.temporal_difference(now * 255, after * 255) / 255
    if antialias:
        planes = [clip.permute(3, 0, 1, 2).float() / 255 for clip in clips]
        resized = [geometry.resize(plane, (size, size), antialias=True) for plane in planes]
        return torch.stack([one.flip(-1) if flip else one for one, flip in zip(resized, flips, strict=True)])
    device = clips[0].device
    lines = [geometry.neighbours(clip.shape[1], size) for clip in clips]
    places = [geometry.neighbours(clip.shape[2], size, flip=flip) for clip, flip in zip(clips, flips, strict=True)]
    if not together:
        halfway = passes(stages.columns, device)(clips[0], *places[0])
        return passes(stages.rows, device)(halfway, *lines[0])
    tables = [torch.stack(table).to(device) for table in (*zip(*lines, strict=True), *zip(*places, strict=True))]
    above, below, down, left, right, across = tables
    shapes = torch.tensor([clip.shape[1:3] for clip in clips])
    start = torch.tensor([0, *(clip.numel() for clip in clips)]).cumsum(0)[:-1]
    pixels = torch.cat([clip.reshape(-1) for clip in clips])
    corners, weights = (above, below, left, right), (down, across)
    return passes(stages.packed, device)(
        pixels, start.to(device), shapes.to(device), corners, weights, clips[0].shape[0]
    )


def _color_and_blur(
    view: View, clips: Tensor, drawn: Parameters, group: list[int], told: slots.Told, out: Tensor, passes: Passes
) -> None:
    """Write clips [N, 3, T, S, S] to `out`; `group` holds their rows in the parameters."""
    device = clips.device
    colors = passes(stages.colors, device)
    means = torch.zeros(len(clips), clips.shape[2], 1, 1, device=device)
    blurred = [n for n, b in enumerate(group) if drawn.blur[b]]
    plain = [n for n, b in enumerate(group) if not drawn.blur[b]]

    if any(told.first_used[b] for b in group):
        before, clips = clips, torch.empty_like(clips)
        colors(before, means, told.first[group].to(device), any(told.first_hue[b] for b in group), *clips.unbind(1))
    if any(told.contrast[b] for b in group):
        means = passes(stages.frame_means, device)(clips)
    if any(told.second_used[b] for b in group):
        # Unblurred clips are finished by this pass; among blurred ones of a batch they only pass through the output.
        before, clips = clips, (torch.empty_like(clips) if blurred else out)
        rows = told.second[group].to(device)
        colors(before, means, rows, any(told.second_hue[b] for b in group), *clips.unbind(1))
    if blurred and plain:
        out[plain] = clips[plain].to(out.dtype)
    for radius in _radii(view.blur_kernel):
        chosen = [n for n in blurred if _radius(view, float(drawn.sigma[group[n]])) == radius]
        if chosen:
            sigmas = [float(drawn.sigma[group[n]]) for n in chosen]
            whole = len(chosen) == len(clips)
            target = out if whole else torch.empty_like(out[: len(chosen)])
            finish = told.finish[[group[n] for n in chosen]].to(device)
            _blur(clips if whole else clips[chosen], sigmas, radius, finish, target, passes)
            if not whole:
                out[chosen] = target


def _blur(clips: Tensor, sigmas: list[float], radius: int, finish: Tensor, out: Tensor, passes: Passes) -> None:
    device, side = clips.device, clips.shape[-1]
    taps = torch.stack([gaussian_kernel(sigma, 2 * radius + 1) for sigma in sigmas]).float().to(device)
    wide = torch.empty(*clips.shape[:-1], side + 2 * radius, device=device)
    inside = wide[..., radius : radius + side]
    passes(stages.blur_rows, device)(clips, taps, reflected(side, radius, device), inside)
    wide[..., :radius] = inside[..., 1 : radius + 1].flip(-1)
    wide[..., radius + side :] = inside[..., side - radius - 1 : side - 1].flip(-1)
    passes(stages.blur_columns, device)(wide, taps, finish, out)


def _radii(kernel_size: int) -> list[int]:
    return sorted({min(radius, kernel_size // 2) for radius in (*RADII, kernel_size)})


def _radius(view: View, sigma: float) -> int:
    needed = reach(sigma, view.blur_kernel)
    return next(radius for radius in _radii(view.blur_kernel) if radius >= needed)
