"""Draw all random augmentation parameters of a batch, for `pipeline.apply`.

Parameters are CPU tensors with one row per clip. They can be displayed, saved (`torch.save(drawn.to_dict(), ...)`, loaded
with `weights_only=True`) and applied again. Each clip has its own generator, so its row depends neither on the batch nor
on the device. Optional operations are drawn last or not at all: enabling one changes no other draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import rand_augment
from .view import View

ERASE_TRIES = 10  # boxes drawn at most until one fits into the frame


@dataclass(frozen=True)
class Parameters:
    """The drawn parameters of B clips of one view, on the CPU."""

    factors: Tensor  # float64 [B, 4]: brightness, contrast and saturation factors, hue shift
    order: Tensor  # int64 [B, 4]: order in which the four are applied
    sigma: Tensor  # float64 [B]: blur, pixels
    jitter: Tensor  # bool [B]: whether to apply it; so are the next four
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    flip: Tensor
    operations: Tensor  # int64 [B, R]: indices in `rand_augment.OPERATIONS`; R is 0 without RandAugment
    magnitudes: Tensor  # float64 [B, R]: signed magnitudes in each operation's own unit
    erased: Tensor  # float64 [B, 4]: erased box, top, left, height, width as shares of the side; 0: none

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, clips: slice | list[int]) -> Parameters:
        """Return the parameters of a subset of the clips."""
        return Parameters(**{name: value[clips] for name, value in self.to_dict().items()})

    def to_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name, for `torch.save`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @staticmethod
    def from_dict(tensors: Mapping[str, Tensor]) -> Parameters:
        """Invert `to_dict`. Raises ValueError for missing or unknown names and for different numbers of clips."""
        expected = [item.name for item in fields(Parameters)]
        if sorted(tensors) != sorted(expected):
            raise ValueError(f"parameters {sorted(tensors)} must be {sorted(expected)}: saved by another version?")
        if len({len(value) for value in tensors.values()}) != 1:
            raise ValueError(f"parameters of different numbers of clips: { {n: len(v) for n, v in tensors.items()} }")
        return Parameters(**tensors)


def draw(view: View, generators: Sequence[torch.Generator]) -> Parameters:
    """Draw the parameters of one clip from each generator."""
    uniform = torch.stack([torch.rand(14, generator=g, dtype=torch.float64) for g in generators])  # [B, 14]
    strength = torch.tensor([view.brightness, view.contrast, view.saturation, view.hue], dtype=torch.float64)
    center = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    low = center - strength
    low[:3].clamp_(min=0)
    count = view.rand_augment_operations
    steps = [rand_augment.draw(count, view.rand_augment_magnitude, g) for g in generators] if count else []
    empty = torch.zeros(len(generators), 0)
    erase = view.erase_probability > 0
    boxes = [_draw_box(view, g) for g in generators] if erase else [[0.0] * 4] * len(generators)
    return Parameters(
        factors=low + (center + strength - low) * uniform[:, 0:4],
        order=uniform[:, 4:8].argsort(dim=1),
        sigma=view.blur_sigma_min + (view.blur_sigma_max - view.blur_sigma_min) * uniform[:, 8],
        jitter=uniform[:, 9] < view.jitter_probability,
        gray=uniform[:, 10] < view.gray_probability,
        blur=uniform[:, 11] < view.blur_probability,
        solarize=uniform[:, 12] < view.solarize_probability,
        flip=uniform[:, 13] < view.flip_probability,
        operations=torch.stack([operations for operations, _ in steps]) if steps else empty.long(),
        magnitudes=torch.stack([magnitudes for _, magnitudes in steps]) if steps else empty.double(),
        erased=torch.tensor(boxes, dtype=torch.float64),
    )


def _draw_box(view: View, generator: torch.Generator) -> list[float]:
    """Draw top, left, height, width in [0, 1] of a box of log-uniform ratio, or zeros; takes the same draws either way."""
    uniform = torch.rand(1 + 4 * ERASE_TRIES, generator=generator, dtype=torch.float64).tolist()
    low, high = math.log(view.erase_ratio_min), math.log(view.erase_ratio_max)
    if uniform[0] < view.erase_probability:
        for first in range(1, len(uniform), 4):
            u_area, u_ratio, u_top, u_left = uniform[first : first + 4]
            area = view.erase_area_min + (view.erase_area_max - view.erase_area_min) * u_area
            ratio = math.exp(low + (high - low) * u_ratio)
            height, width = math.sqrt(area / ratio), math.sqrt(area * ratio)
            if height < 1 and width < 1:
                return [u_top * (1 - height), u_left * (1 - width), height, width]
    return [0.0] * 4
