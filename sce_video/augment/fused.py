"""The pipeline in few passes, each compiled: the same result as `pipeline`'s operations one after another, to rounding.

On a CPU one clip passes at a time, so that it stays in the cache; on other devices all clips of a batch together, since
there every launch costs and memory is read once. What was drawn is data (`slots.py`), so nothing is compiled again but for
another number of frames or pixels. Crops may have any size.

Between passes clips lie in buffers that are taken once per batch (fresh memory costs the system more than a pass) and have
room for the borders that the blur mirrors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from . import built, geometry, rand_augment, slots, stages
from .blur import gaussian_kernel, reach
from .draws import Parameters
from .view import View

RADII = (3, 7)  # and the whole kernel: a blur is computed with the next larger one
Passes = Callable[[Callable[..., None], bool], Callable[..., None]]


def eager(function: Callable[..., None], together: bool) -> Callable[..., None]:
    """The pass as it is written: for tests, and for looking into."""
    return function


@cache
def _compile(function: Callable[..., None]) -> Callable[..., None]:
    return torch.compile(function, dynamic=True, fullgraph=True)


def compiled(function: Callable[..., None], together: bool) -> Callable[..., None]:
    """The pass in machine code: on a CPU what `built` has loaded, else through torch.compile."""
    return _compile(function) if together else built.passes(function)


@dataclass(frozen=True)
class Settings:
    """What is the same for all clips; see `pipeline.apply`. together: all clips at once (GPU) or one by one (CPU)."""

    view: View
    mean: float
    std: float
    antialias: bool
    passes: Passes
    together: bool

    def run(self, function: Callable[..., None]) -> Callable[..., None]:
        return self.passes(function, self.together)


@dataclass
class Workspace:
    """Buffers between the passes, by name; `border` lines above and below each frame are for the blur."""

    device: torch.device
    border: int
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return float32 memory of this shape, the same as last time if it suffices; its values are anything."""
        size = torch.Size(shape).numel()
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, device=self.device)
        return self.buffers[name][:size].view(shape)

    def tall(self, name: str, clips: int, frames: int, side: int) -> Tensor:
        """Return [clips, 3, frames, side + 2 border, side]."""
        return self.take(name, clips, 3, frames, side + 2 * self.border, side)

    def inside(self, tall: Tensor) -> Tensor:
        """Return the frames without their borders."""
        return tall[..., self.border : tall.shape[-2] - self.border, :]


def apply(
    clips: Sequence[Tensor], drawn: Parameters, out: Tensor, differences: Sequence[bool], settings: Settings
) -> None:
    """Augment uint8 clips [T, h, w, 3] into `out` [B, 3, T, S, S], except for erasing; see `pipeline.apply`."""
    told = slots.tell(settings.view, drawn, settings.mean, settings.std)
    groups = [[b] for b in range(len(clips))]
    if settings.together:
        groups = [group for flag in (False, True) if (group := [b for b, d in enumerate(differences) if d == flag])]
    # By the view and not by the batch: with other borders every pass would be compiled again.
    border = settings.view.blur_kernel // 2 if settings.view.blur_probability > 0 or drawn.blur.any() else 0
    workspace = Workspace(out.device, border)
    for group in groups:
        whole = len(group) == 1 or len(group) == len(out)
        # Where a group is no slice of the output, it gets one of its own and is copied at the end.
        target = out[group[0] : group[0] + len(group)] if whole else torch.empty_like(out[: len(group)])
        tall = workspace.tall("resampled", len(group), out.shape[2], out.shape[-1])
        inside = workspace.inside(tall)
        flips = drawn.flip[group].tolist()
        _resample([clips[b] for b in group], flips, inside, workspace, settings, difference=differences[group[0]])
        if drawn.operations.shape[1]:
            inside.copy_(rand_augment.apply_drawn(inside, drawn.operations[group], drawn.magnitudes[group]))
        _color_and_blur(tall, drawn[group], told[group], target, workspace, settings)
        if not whole:
            out[group] = target


def apply_compiled(
    clips: Sequence[Tensor], drawn: Parameters, out: Tensor, differences: Sequence[bool], settings: Settings
) -> None:
    """Run `apply`; through torch.compile with room for all versions of a pass that two sizes need (torch's default: 8)."""
    if not settings.together:
        apply(clips, drawn, out, differences, settings)
        return
    import torch._dynamo as dynamo  # takes a second

    with dynamo.config.patch(recompile_limit=64):
        apply(clips, drawn, out, differences, settings)


def _resample(
    clips: list[Tensor],
    flips: list[bool],
    out: Tensor,
    workspace: Workspace,
    settings: Settings,
    *,
    difference: bool,
) -> None:
    """Write the clips to `out` [N, 3, T, S, S] in 0..1, mirrored where `flips` says so."""
    size = out.shape[-1]
    if difference:
        # Resampling is linear: the difference of what is resampled is the resampled difference.
        after = workspace.inside(workspace.tall("colored", len(clips), out.shape[2], size))
        _resample([clip[: len(clip) // 2] for clip in clips], flips, out, workspace, settings, difference=False)
        _resample([clip[len(clip) // 2 :] for clip in clips], flips, after, workspace, settings, difference=False)
        for now, following in zip(out, after, strict=True):
            now.copy_(geometry.temporal_difference(now * 255, following * 255) / 255)
    elif settings.antialias:
        for clip, flip, place in zip(clips, flips, out, strict=True):
            planes = geometry.resize(clip.permute(3, 0, 1, 2).float(), (size, size), antialias=True) / 255
            place.copy_(planes.flip(-1) if flip else planes)
    elif settings.together:
        _resample_together(clips, flips, out, settings)
    else:
        (clip,) = clips
        frames, height, width, _ = clip.shape
        halfway = workspace.take("halfway", frames, height, 3, size)
        settings.run(stages.columns)(clip.contiguous(), *geometry.neighbours(width, size, flip=flips[0]), halfway)
        settings.run(stages.rows)(halfway, *geometry.neighbours(height, size), out)


def _resample_together(clips: list[Tensor], flips: list[bool], out: Tensor, settings: Settings) -> None:
    size, device = out.shape[-1], out.device
    lines = [geometry.neighbours(clip.shape[1], size) for clip in clips]
    places = [geometry.neighbours(clip.shape[2], size, flip=flip) for clip, flip in zip(clips, flips, strict=True)]
    tables = [torch.stack(table).to(device) for table in (*zip(*lines, strict=True), *zip(*places, strict=True))]
    above, below, down, left, right, across = tables
    shapes = torch.tensor([clip.shape[1:3] for clip in clips]).to(device)
    start = torch.tensor([0, *(clip.numel() for clip in clips)]).cumsum(0)[:-1].to(device)
    pixels = torch.cat([clip.reshape(-1) for clip in clips])
    settings.run(stages.packed)(pixels, start, shapes, (above, below, left, right), (down, across), out)


def _color_and_blur(
    tall: Tensor, drawn: Parameters, told: slots.Told, out: Tensor, workspace: Workspace, settings: Settings
) -> None:
    """Write the clips inside `tall` to `out` [N, 3, T, S, S]; `tall` is used up."""
    count, _, frames, side, _ = out.shape
    device, every = out.device, settings.together  # together every pass is run: no clip depends on what others drew
    colors = settings.run(stages.colors)
    spare = workspace.tall("spare", count, frames, side)

    def per_frame(values: Tensor) -> Tensor:
        return values[..., None].repeat(1, 1, frames).to(device)

    means = workspace.take("means", count, frames, 1, 1).zero_()
    if every or told.first_used[0]:
        into = workspace.inside(spare).unbind(1)
        colors(workspace.inside(tall), means, per_frame(told.first), every or bool(told.first_hue[0]), *into)
        tall, spare = spare, tall
    if every or told.contrast[0]:
        settings.run(stages.frame_means)(workspace.inside(tall), means)
    blurred = drawn.blur.nonzero().flatten().tolist()
    if every or told.second_used[0]:
        # Not to a channels-last output: planes that interleave in memory come out wrong from Inductor (torch 2.15).
        direct = not blurred and out.is_contiguous()
        into = (out if direct else workspace.inside(spare)).unbind(1)
        colors(workspace.inside(tall), means, per_frame(told.second), every or bool(told.second_hue[0]), *into)
        tall, spare = spare, tall
        if not blurred and not direct:
            out.copy_(workspace.inside(tall))
    if not blurred:
        return
    if len(blurred) < count:
        plain = (~drawn.blur).nonzero().flatten().tolist()
        out[plain] = workspace.inside(tall)[plain].to(out.dtype)
    radii = [blur_radius(settings.view, sigma) for sigma in drawn.sigma.tolist()]
    for radius in sorted({radii[n] for n in blurred}):
        rows = [n for n in blurred if radii[n] == radius]
        whole = len(rows) == count
        target = out if whole else torch.empty_like(out[: len(rows)])
        chosen = tall if whole else tall[rows]
        _blur(chosen, drawn.sigma[rows], radius, told.finish[rows], target, workspace, settings)
        if not whole:
            out[rows] = target


def _blur(
    tall: Tensor,
    sigmas: Tensor,
    radius: int,
    finish: Tensor,
    out: Tensor,
    workspace: Workspace,
    settings: Settings,
) -> None:
    """Write the clips inside `tall` to `out`, blurred with taps up to `radius` on each side and finished."""
    side, border = out.shape[-1], workspace.border
    taps = torch.stack([gaussian_kernel(sigma, 2 * radius + 1) for sigma in sigmas.tolist()]).float()
    taps, finish = (values[..., None].repeat(1, 1, side).to(out.device) for values in (taps, finish))
    tall = tall[..., border - radius : border + side + radius, :]
    _mirror(tall, radius)
    wide = workspace.take("wide", *out.shape[:-1], side + 2 * radius)
    settings.run(stages.blur_rows)(tall, taps, wide[..., radius : radius + side])
    _mirror(wide.transpose(-1, -2), radius)
    settings.run(stages.blur_columns)(wide, taps, finish, out)


def _mirror(tall: Tensor, radius: int) -> None:
    """Fill the first and last `radius` lines of [..., S + 2 radius, S] with their mirror image, in place."""
    end = tall.shape[-2] - radius
    tall[..., :radius, :] = tall[..., radius + 1 : 2 * radius + 1, :].flip(-2)
    tall[..., end:, :] = tall[..., end - radius - 1 : end - 1, :].flip(-2)


def blur_radius(view: View, sigma: float) -> int:
    """Return the number of pixels to each side that are computed for a sigma: one of few, as each is compiled apart."""
    half, needed = view.blur_kernel // 2, reach(sigma, view.blur_kernel)
    return next(radius for radius in (*(r for r in RADII if r < half), half) if radius >= needed)
