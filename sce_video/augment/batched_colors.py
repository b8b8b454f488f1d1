"""Operations on colours, blur and erased boxes for a whole batch: the second half of `batched.apply`.

Operations that need few launches run on all clips, with numbers that leave some clips unchanged; the others run on the
clips concerned, which the host knows. Nothing is read back. Shape legend: n clips, T frames, S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import rand_augment
from .blur import gaussian_kernel, reach
from .color import GRAY
from .draws import Parameters
from .tables import Block, Part
from .view import View

NEVER = 2.0  # a solarize threshold above all values


class Colors:
    """The drawn operations on colours, blur and erased boxes of a slice of clips, as tables in `block`."""

    def __init__(self, view: View, drawn: Parameters, size: int, block: Block) -> None:
        jitter = drawn.jitter[:, None]
        self.flip = block.add(drawn.flip)
        self.rand_augment = RandAugment(drawn, size, block)
        self.channels = block.add(torch.tensor([5, 3, 1]))
        self.rounds: list[tuple[list[Part], Blend | None]] = []
        for turn in range(4):
            kind = torch.where(jitter, drawn.order, -1)[:, turn]
            factors = drawn.factors.gather(1, drawn.order[:, turn : turn + 1])[:, 0]
            hue = (kind == 3).nonzero()[:, 0].split(max(4, len(drawn) // 3))  # bounds the memory; rarely two parts
            shifts = [block.add(torch.stack([rows.double(), 6 * factors[rows]])) for rows in hue if len(rows)]
            self.rounds.append((shifts, Blend(kind, factors, block) if (kind >= 0).any() else None))
        self.gray = Blend(torch.where(drawn.gray, 2, -1), torch.zeros(len(drawn)), block) if drawn.gray.any() else None
        self.blur = self._taps(view, drawn, block) if drawn.blur.any() else None
        self.mirrored = block.add(mirrored(size))
        threshold = torch.where(drawn.solarize, view.solarize_threshold, NEVER)
        self.solarize = block.add(threshold) if drawn.solarize.any() else None
        self.boxes = block.add(box_edges(drawn.erased, size, size)) if (drawn.erased[:, 2] > 0).any() else None

    @staticmethod
    def _taps(view: View, drawn: Parameters, block: Block) -> Part:
        """Return half of each clip's kernel, [n, kernel // 2 + 2] from the centre to 0; clips without blur have 1, 0, ..."""
        half = torch.zeros(len(drawn), view.blur_kernel // 2 + 2, dtype=torch.float64)
        half[:, 0] = 1
        for row, sigma in zip(half, drawn.sigma.where(drawn.blur, 0).tolist(), strict=True):
            if sigma > 0:
                radius = reach(sigma, view.blur_kernel)
                row[: radius + 1] = gaussian_kernel(sigma, 2 * radius + 1)[radius:]
        return block.add(half)

    def applied(self, clips: Tensor) -> Tensor:
        """Return the clips float32 [n, 3, T, S, S] after all operations; the argument is overwritten."""
        self.rand_augment.apply_(clips)
        for shifts, blend in self.rounds:
            for shift in shifts:
                rows = shift.integers()[0]
                clips.index_copy_(0, rows, shift_hue(clips.index_select(0, rows), shift.numbers()[1], self.channels.numbers()))
            if blend is not None:
                blend.apply_(clips)
        if self.gray is not None:
            self.gray.apply_(clips)
        if self.blur is not None:
            clips = blur(clips, self.blur.numbers(), self.mirrored.integers())
        if self.solarize is not None:
            inverted = clips >= self.solarize.numbers().view(-1, 1, 1, 1, 1)
            clips.mul_(torch.where(inverted, -1.0, 1.0)).add_(inverted)  # 1 - v, with less memory than a choice
        return clips


def gray_value(clips: Tensor) -> Tensor:
    """Return the grey value of [n, 3, T, S, S] as [n, 1, T, S, S]: `color.luma` in three launches."""
    red, green, blue = clips.split(1, dim=1)
    gray: Tensor = red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])
    return gray


class Blend:
    """Brightness, contrast and saturation in one form: factor * clip + (1 - factor) * m, clamped to 0..1.

    m is 0, each frame's mean grey value, or the grey value. kind: int64 [n], 0, 1, 2 for the three, another number for
    clips that do not change; factors: float64 [n].
    """

    def __init__(self, kind: Tensor, factors: Tensor, block: Block) -> None:
        factors = torch.where((kind >= 0) & (kind <= 2), factors, 1.0).double()
        rest = 1 - factors
        self.table = block.add(torch.stack([factors, rest * (kind == 1), rest * (kind == 2)]))
        self.uses_gray = bool(((kind == 1) | (kind == 2)).any())

    def apply_(self, clips: Tensor) -> None:
        """Change float32 clips [n, 3, T, S, S] in place."""
        factor, of_mean, of_gray = self.table.numbers().view(3, -1, 1, 1, 1, 1)
        if self.uses_gray:
            gray = gray_value(clips)
            mean = gray.mean(dim=(-2, -1), keepdim=True)
            gray = gray.mul_(of_gray).add_(mean * of_mean)
            clips.mul_(factor).add_(gray)
        else:
            clips.mul_(factor)
        clips.clamp_(0, 1)


def shift_hue(clips: Tensor, sixths: Tensor, channels: Tensor) -> Tensor:
    """Return float32 clips [n, 3, T, S, S] with the hue shifted by sixths [n] of the circle: `color.adjust_hue`.

    channels: 5, 3, 1, the numbers of red, green and blue in its formula.
    """
    value, largest = clips.max(dim=1, keepdim=True)
    chroma = value - clips.amin(dim=1, keepdim=True)
    # Green - blue, blue - red, red - green: the hue's numerator where red, green, blue is the largest channel.
    ramps = clips.roll(-1, dims=1).sub_(clips.roll(-2, dims=1)).div_(chroma.clamp(min=1e-12))
    hue = ramps.gather(1, largest).add_(largest, alpha=2).add_(sixths.view(-1, 1, 1, 1, 1))
    k = (hue + channels.view(3, 1, 1, 1)).remainder_(6)
    weight = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(value, weight, chroma, value=-1)


def mirrored(size: int) -> Tensor:
    """Return the positions at which a line of pixels is seen: direct and reflected at both ends, int64 [3, size].

    The border itself is not repeated: there the reflected positions are far away.
    """
    line = torch.arange(size)
    low, high = -line, 2 * (size - 1) - line
    low[0], high[-1] = -4 * size, 4 * size
    return torch.stack([line, low, high])


def blur(clips: Tensor, half: Tensor, sources: Tensor) -> Tensor:
    """Blur float32 clips [n, 3, T, S, S] with a kernel each, [n, taps // 2 + 2] from the centre to 0; overwrites the argument.

    Each direction is one product with a banded matrix per clip, [S, S], into which the reflection at the
    borders is folded. sources: see `mirrored`.
    """
    n, channels, frames, size, _ = clips.shape
    distances = (sources[:, None] - sources[0][:, None]).abs_().clamp_(max=half.shape[1] - 1)  # [3, S out, S source]
    matrix = half.index_select(1, distances.view(-1)).view(n, 3, size, size).sum(dim=1)  # [n, S out, S source]
    with _full_float32():
        wide = torch.bmm(matrix, clips.view(n, -1, size).transpose(1, 2))  # [n, S columns, 3 T S rows]
        both = torch.bmm(matrix, wide.view(n, -1, size).transpose(1, 2), out=clips.view(n, size, -1))  # S rows, S columns x 3 T
    return both.view(n, size, size, channels, frames).permute(0, 3, 4, 1, 2)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute products without TF32: its 10 bits would be visible in pixels."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def box_edges(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the first row, last row + 1, first column and last column + 1 of boxes, int64 [n, 4]; 0 for no box.

    boxes: [n, 4], see `pipeline.erase`. height, width: of the frame in pixels.
    """
    top, left, tall, wide = boxes.T
    edges = torch.stack([top * height, (top + tall) * height, left * width, (left + wide) * width], dim=1)
    pixels: Tensor = edges.round().long() * (tall > 0)[:, None]
    return pixels


def in_boxes(edges: Tensor, height: int, width: int) -> Tensor:
    """Return a mask of the pixels of a frame that lie in boxes with these edges [n, 4]: bool [n, 1, 1, height, width]."""
    top, bottom, left, right = edges.T[..., None]
    row, column = torch.arange(height, device=edges.device), torch.arange(width, device=edges.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    inside: Tensor = (rows[:, :, None] & columns[:, None])[:, None, None]
    return inside


def erase(clips: Tensor, edges: Part | None) -> None:
    """Set the boxes with these edges [n, 4] of clips [n, 3, T, S, S] to 0, in place."""
    if edges is not None:
        clips.masked_fill_(in_boxes(edges.integers(), *clips.shape[-2:]), 0)


class RandAugment:
    """The drawn operations of RandAugment, one round after another, each kind on the clips concerned."""

    def __init__(self, drawn: Parameters, size: int, block: Block) -> None:
        self.rounds = [
            self._round(operations, magnitudes, size, block)
            for operations, magnitudes in zip(drawn.operations.T, drawn.magnitudes.T, strict=True)
        ]

    @staticmethod
    def _round(operations: Tensor, magnitudes: Tensor, size: int, block: Block) -> tuple[Blend, dict[str, tuple[Part, Part]]]:
        names = [rand_augment.OPERATIONS[i] for i in operations.tolist()]
        blends = {"brightness": 0, "contrast": 1, "saturation": 2}
        blend = Blend(torch.tensor([blends.get(name, -1) for name in names]), 1 + magnitudes, block)
        kinds: dict[str, tuple[Part, Part]] = {}
        for kind in ("move", "sharpness", "posterize", "solarize", "auto_contrast", "equalize"):
            wanted = rand_augment.GEOMETRIC if kind == "move" else (kind,)
            rows = [row for row, name in enumerate(names) if name in wanted]
            numbers = magnitudes[rows]
            if kind == "move":
                numbers = torch.tensor(
                    [rand_augment.source_matrix(names[row], magnitudes[row].item(), size, size) for row in rows]
                ).view(-1, 2, 3)
            if rows:
                kinds[kind] = block.add(torch.tensor(rows)), block.add(numbers)
        return blend, kinds

    def apply_(self, clips: Tensor) -> None:
        """Change float32 clips [n, 3, T, S, S] in place."""
        for blend, kinds in self.rounds:
            blend.apply_(clips)
            for kind, (part, numbers) in kinds.items():
                rows = part.integers()
                clips.index_copy_(0, rows, _changed(clips.index_select(0, rows), kind, numbers.numbers()))


def _changed(clips: Tensor, kind: str, numbers: Tensor) -> Tensor:
    """Return clips changed by one kind of operation, with the magnitudes or matrices `numbers`."""
    if kind == "move":
        return rand_augment.move(clips, numbers)
    if kind == "sharpness":
        return rand_augment.sharpen(clips, 1 + numbers)
    if kind == "posterize":
        return rand_augment.posterize(clips, numbers)
    if kind == "solarize":
        return torch.where(clips >= numbers.view(-1, 1, 1, 1, 1), 1 - clips, clips)
    return rand_augment.auto_contrast(clips) if kind == "auto_contrast" else rand_augment.equalize(clips)
