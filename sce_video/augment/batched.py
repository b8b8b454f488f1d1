"""The augmentation of one view for a whole batch in plain tensor operations: the fast form of `pipeline.apply` on GPUs.

Same order, same result (to 1e-5; planes become RGB to the bit). The number of operations does not depend on the number of
clips, nothing is read back from the device, and all small numbers travel in one asynchronous copy (`tables.Block`).
Clips of different sizes are padded to the largest of their group.

Temporary memory is bounded by processing slices of clips: see MEMORY_BYTES.

Shape legend: n clips of a group or slice, F source frames, h x w the largest source frame, T frames, S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .batched_colors import Colors, erase, gray_value
from .blur import check_kernel
from .draws import Parameters
from .geometry import Channels, normalize
from .tables import Block, Part
from .view import View

MEMORY_BYTES = 1_000_000_000  # of temporary tensors; a single clip may need more


class Source(NamedTuple):
    """Where a clip lies in the flat uint8 buffer of a batch, as RGB [F, height, width, 3] or as 4:2:0 planes.

    Planes: luma [F, 2 a, 2 b], then chroma [F, 2, a, b], with a = (top + height + 1) // 2, b = (left + width + 1) // 2.
    """

    start: int  # first byte
    frames: int  # F
    height: int  # pixels of the crop
    width: int
    top: int = 0  # of the crop in its planes: 0 or 1
    left: int = 0
    # Planes: black level, luma factor, and factors of Cr to red, Cb to green, Cr to green, Cb to blue, in 1 / 2**13.
    coding: tuple[int, int, int, int, int, int] | None = None  # None: RGB

    def bytes_needed(self, height: int, width: int, size: int) -> int:
        """Return the temporary bytes of reading and resizing one such clip in a group of height x width at most."""
        crop, narrow, square = height * width, height * size, size * size
        return self.frames * max(16 * crop, 3 * crop + 27 * narrow, 3 * crop + 12 * narrow + 24 * square)


@torch.no_grad()
def apply(
    view: View,
    pixels: Tensor,
    sources: Sequence[Source],
    parameters: Parameters,
    *,
    size: int,
    mean: Channels,
    std: Channels,
    differences: Sequence[bool] | None = None,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Augment and normalise B clips: uint8 buffer -> [B, 3, T, size, size] on the buffer's device.

    pixels, sources: a flat uint8 buffer and one entry per clip. A temporal difference holds T frames and their T successors.
    Other arguments and the result: see `pipeline.apply`.
    """
    differences = [False] * len(sources) if differences is None else differences
    frames = sources[0].frames // (2 if differences[0] else 1)
    if any(s.frames != frames * (2 if d else 1) for s, d in zip(sources, differences, strict=True)):
        raise ValueError("all clips of a batch must have the same number of frames, temporal differences twice as many")
    if parameters.blur.any():
        check_kernel(view.blur_kernel, size, size)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    shape = (len(sources), 3, frames, size, size)
    out = torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=layout)
    work_bytes = 12 * frames * size * size  # of a clip's float32 values; the operations on colours need twice as much more
    most = max(1, MEMORY_BYTES // (3 * work_bytes))
    for first in range(0, len(sources), most):
        chosen = slice(first, first + most)
        block = Block(pixels.device, largest=pixels.numel())
        budget = MEMORY_BYTES - work_bytes * len(sources[chosen])
        flips = parameters.flip[chosen]
        groups = _groups(sources[chosen], differences[chosen], flips, size, budget, block, antialias=antialias)
        colors = Colors(view, parameters[chosen], size, block)
        block.send()
        clips = colors.applied(_read_and_resize(pixels, groups))
        out[chosen].copy_(normalize(clips, mean, std))
        del clips
        erase(out[chosen], colors.boxes)
    return out


def _read_and_resize(pixels: Tensor, groups: Sequence[Group]) -> Tensor:
    """Return the clips of all groups, float32 [n, 3, T, size, size] in 0..1, in the order of the slice."""
    if len(groups) == 1:
        return groups[0].resized(pixels)
    first = groups[0].resized(pixels)
    clips = first.new_empty((sum(len(group) for group in groups), *first.shape[1:]))
    clips.index_copy_(0, groups[0].rows.integers(), first)
    del first  # its memory is needed for the next group
    for group in groups[1:]:
        clips.index_copy_(0, group.rows.integers(), group.resized(pixels))
    return clips


def _groups(
    sources: Sequence[Source],
    differences: Sequence[bool],
    flips: Tensor,
    size: int,
    budget: int,
    block: Block,
    *,
    antialias: bool,
) -> list[Group]:
    """Split the clips into groups of one kind, each small enough for the budget in bytes."""
    groups = []
    for planar in (False, True):
        for difference in (False, True):
            rows = [i for i, s in enumerate(sources) if (s.coding is not None, differences[i]) == (planar, difference)]
            if not rows:
                continue
            height, width = max(sources[i].height for i in rows), max(sources[i].width for i in rows)
            count = -(-len(rows) * sources[rows[0]].bytes_needed(height, width, size) // budget)
            each = -(-len(rows) // count)
            for first in range(0, len(rows), each):
                part = rows[first : first + each]
                chosen = [sources[i] for i in part]
                resizing = Resizing(chosen, flips[part], size, block, antialias=antialias)
                reading = (Planes if planar else Interleaved)(chosen, block)
                groups.append(Group(block.add(torch.tensor(part)), reading, resizing, difference))
    return groups


@dataclass(frozen=True)
class Group:
    """Clips that are read and resized together; `rows` are their positions in the slice."""

    rows: Part
    reading: Planes | Interleaved
    resizing: Resizing
    difference: bool

    def __len__(self) -> int:
        return self.rows.shape[0]

    def resized(self, pixels: Tensor) -> Tensor:
        """Return float32 [n, 3, T, size, size] in 0..1, flipped where drawn."""
        clips = self.resizing.applied(self.reading.read(pixels))
        if not self.difference:
            return clips
        first, second = clips.chunk(2, dim=2)  # the difference is linear, so that it can follow the resizing
        return gray_value(first - second).add_(1).div_(2).expand_as(first)


def _edge(lengths: Tensor, extra: Tensor | int = 0) -> Tensor:
    """Return int64 [n, longest]: 0, 1, ... up to lengths [n] - 1, then that again: beyond its edge a frame is repeated."""
    return torch.minimum(torch.arange(int(lengths.max())), lengths[:, None] - 1) + extra


def _look_up(pixels: Tensor, clip: Tensor, position: Tensor) -> Tensor:
    """Return the bytes at clip + position: [n, C, F] and [n, h, w] -> uint8 [n, C, F, h, w]."""
    index = clip[..., None, None] + position[:, None, None]
    return pixels.index_select(0, index.view(-1)).view(index.shape)


class Interleaved:
    """Clips of RGB values."""

    def __init__(self, sources: Sequence[Source], block: Block) -> None:
        start, height, width = torch.tensor([(s.start, s.height, s.width) for s in sources]).T
        frames = 3 * (height * width)[:, None, None] * torch.arange(sources[0].frames)
        self.clip = block.add(start[:, None, None] + torch.arange(3)[:, None] + frames)  # [n, 3, F]
        self.rows = block.add(3 * _edge(height) * width[:, None])
        self.columns = block.add(3 * _edge(width))

    def read(self, pixels: Tensor) -> Tensor:
        """Return uint8 [n, 3, F, h, w]."""
        position = self.rows.offsets()[:, :, None] + self.columns.offsets()[:, None]
        return _look_up(pixels, self.clip.offsets(), position)


class Planes:
    """Clips of 4:2:0 planes; they become RGB by the integer arithmetic of `PlanarClip.rgb`."""

    def __init__(self, sources: Sequence[Source], block: Block) -> None:
        start, height, width, top, left = torch.tensor([(s.start, s.height, s.width, s.top, s.left) for s in sources]).T
        a, b = (top + height + 1) // 2, (left + width + 1) // 2
        rows, columns = _edge(height, top[:, None]), _edge(width, left[:, None])
        frames = torch.arange(sources[0].frames)
        self.luma = block.add((start[:, None] + (4 * a * b)[:, None] * frames)[:, None])
        self.luma_rows, self.luma_columns = block.add(rows * (2 * b)[:, None]), block.add(columns)
        blue = start[:, None] + (4 * a * b)[:, None] * len(frames) + (2 * a * b)[:, None] * frames
        self.blue, self.red = block.add(blue[:, None]), block.add((blue + (a * b)[:, None])[:, None])
        self.rows, self.columns = block.add(_edge(a) * b[:, None]), block.add(_edge(b))
        self.full_rows, self.full_columns = block.add(rows // 2), block.add(columns // 2)
        # ((v - low) << 3) * f is v * 8 f - low * 8 f.
        low, scale, red_cr, green_cb, green_cr, blue_cb = 8 * torch.tensor([s.coding for s in sources if s.coding]).T
        none = torch.zeros_like(low)
        self.level = block.add(torch.stack([scale, -low // 8 * scale])[..., None])  # [2, n, 1]
        chroma = torch.stack([torch.stack([none, green_cb, blue_cb]), torch.stack([red_cr, green_cr, none])]).mT
        self.factors = block.add(torch.stack([chroma, -128 * chroma], dim=1))  # [blue and red, 2, n, 3]

    def read(self, pixels: Tensor) -> Tensor:
        """Return uint8 RGB [n, 3, F, h, w]."""
        colors = _pick(_pick(self._colors(pixels), self.full_rows.integers(), axis=3), self.full_columns.integers(), axis=4)
        position = self.luma_rows.offsets()[:, :, None] + self.luma_columns.offsets()[:, None]
        level = _scaled(_look_up(pixels, self.luma.offsets(), position), self.level.int32()).short()
        return colors.add_(level).clamp_(0, 255).to(torch.uint8)

    def _colors(self, pixels: Tensor) -> Tensor:
        """Return the share of chroma in red, green and blue, int16 [n, 3, F, a, b]."""
        position = self.rows.offsets()[:, :, None] + self.columns.offsets()[:, None]
        from_blue, from_red = self.factors.int32()
        total = _scaled(_look_up(pixels, self.blue.offsets(), position), from_blue)
        return total.add_(_scaled(_look_up(pixels, self.red.offsets(), position), from_red)).short()


def _scaled(values: Tensor, factor_and_offset: Tensor) -> Tensor:
    """Return (values * factor + offset) >> 16: uint8 [n, 1, F, h, w] and int32 [2, n, C] -> int32 [n, C, F, h, w]."""
    factor, offset = factor_and_offset[..., None, None, None]
    return torch.addcmul(offset, values.int(), factor).bitwise_right_shift_(16)


def _pick(clips: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the lines of [n, C, F, h, w] at index [n, L] along axis 3 or 4; the index is not repeated in memory."""
    shape = list(clips.shape)
    shape[axis] = index.shape[1]
    view = [len(index), 1, 1, 1, 1]
    view[axis] = index.shape[1]
    return clips.gather(axis, index.view(view).expand(shape))


class Resizing:
    """Bilinear resizing, with the flip: for each pixel the source lines that it is made of, and their weights."""

    def __init__(self, sources: Sequence[Source], flips: Tensor, size: int, block: Block, *, antialias: bool) -> None:
        sides = torch.tensor([(s.height, s.width) for s in sources], dtype=torch.float32)
        index, weight = resize_tables(sides, size, antialias=antialias)
        flip = flips.view(-1, 1, 1)
        self.rows, self.row_weights = block.add(index[:, 0]), block.add(weight[:, 0] / 255)
        self.columns = block.add(torch.where(flip, index[:, 1].flip(-1), index[:, 1]))
        self.column_weights = block.add(torch.where(flip, weight[:, 1].flip(-1), weight[:, 1]))

    def applied(self, clips: Tensor) -> Tensor:
        """Return uint8 clips [n, 3, F, h, w] as float32 [n, 3, F, size, size] in 0..1."""
        narrow = _resample(clips, self.columns.integers(), self.column_weights.numbers(), axis=4)
        return _resample(narrow, self.rows.integers(), self.row_weights.numbers(), axis=3)


def resize_tables(sides: Tensor, size: int, *, antialias: bool) -> tuple[Tensor, Tensor]:
    """Return the pixels that each pixel of a bilinear resizing is made of, int64 [n, 2, taps, size], and their weights.

    sides: float32 [n, 2], height and width of each source. The rule is that of `torch.nn.functional.interpolate` with
    half-pixel centres: without antialiasing the two neighbours, with it a triangle as wide as the scale.
    """
    scale = (sides / size)[:, :, None, None]
    center = (torch.arange(size, dtype=torch.float32) + 0.5) * scale  # [n, 2, 1, size]
    if not antialias:
        center = (center - 0.5).clamp(min=0)
        first = center.floor()
        taps = first + torch.arange(2)[:, None]
        weight = 1 - (taps - center).abs()
    else:
        support = scale.clamp(min=1)
        first, end = (center - support + 0.5).trunc().clamp(min=0), (center + support + 0.5).trunc()
        taps = first + torch.arange(int((end - first).max()))[:, None]
        weight = (1 - (taps - center + 0.5).abs() / support).clamp(min=0) * (taps < end.minimum(sides[:, :, None, None]))
        weight = weight / weight.sum(dim=2, keepdim=True)
    return torch.minimum(taps, sides[:, :, None, None] - 1).long(), weight


def _resample(clips: Tensor, index: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Return weighted sums of lines of [n, 3, F, h, w] along axis 3 or 4: index and weight [n, taps, L] -> float32."""
    shape = [len(index), 1, 1, 1, 1]
    shape[axis] = index.shape[2]
    total = _pick(clips, index[:, 0], axis) * weight[:, 0].view(shape)
    for tap in range(1, index.shape[1]):
        total.addcmul_(_pick(clips, index[:, tap], axis), weight[:, tap].view(shape))
    return total
