"""From drawn parameters to what the passes of `stages` are told: rows of numbers, one per clip.

The four jitters fall into two groups at the contrast, which needs the means of what it finds. Within a group brightness and
saturation keep their order, and the hue stands before, between or after them: two blends, hue, two blends hold every order,
the unused ones with factor 1.

One row: factor of the contrast and weight of the mean; factor of blends 1 and 2, each with the weight of the luma; sixths
of the circle by which the hue is turned; the same of blends 3 and 4; grey (0 or 1); threshold of solarising (2: never); scale
and shift of normalising.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .draws import Parameters
from .view import View

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NOTHING = [1.0, 0.0, *[1.0, 0.0] * 2, 0.0, *[1.0, 0.0] * 2]
NEVER = 2.0  # a threshold no value reaches


@dataclass(frozen=True)
class Told:
    """One row per clip for the passes before and after the contrast's means, and what they contain."""

    first: Tensor  # float32 [B, COLORS]
    second: Tensor  # the same; a clip that is blurred is solarised and normalised after that, by `finish`
    finish: Tensor  # float32 [B, 3]: threshold, scale and shift
    first_used: Tensor  # bool [B]: whether `first` changes anything
    second_used: Tensor  # the same; normalising counts
    contrast: Tensor  # whether the means are needed
    first_hue: Tensor  # whether `first` turns the hue
    second_hue: Tensor

    def __getitem__(self, clips: list[int]) -> Told:
        return Told(*(getattr(self, item.name)[clips] for item in fields(self)))


def tell(view: View, drawn: Parameters, mean: float, std: float) -> Told:
    """Return the rows for clips normalised by (clip - mean) / std."""
    rows: dict[str, list[list[float]]] = {"first": [], "second": [], "finish": []}
    groups = []
    columns = (drawn.jitter, drawn.order, drawn.factors, drawn.gray, drawn.blur, drawn.solarize)
    for jitter, order, factors, gray, blur, solarize in zip(*(column.tolist() for column in columns), strict=True):
        order = order if jitter else []
        split = order.index(CONTRAST) if jitter else 0
        before, after = order[:split], order[split + 1 :]
        finish = [view.solarize_threshold if solarize else NEVER, 1 / std, -mean / std]
        rows["first"].append([*_group(before, factors), 0.0, NEVER, 1.0, 0.0])
        second = _group(after, factors)
        if jitter:
            second[0:2] = [factors[CONTRAST], 1 - factors[CONTRAST]]
        rows["second"].append([*second, float(gray), *([NEVER, 1.0, 0.0] if blur else finish)])
        rows["finish"].append(finish)
        groups.append((bool(before), jitter or gray or not blur, jitter, HUE in before, HUE in after))
    return Told(
        *(torch.tensor(values, dtype=torch.float32) for values in rows.values()), *torch.tensor(groups).unbind(1)
    )


def _group(operations: list[int], factors: list[float]) -> list[float]:
    """Return the first eleven numbers of a row for some of the jitters in their order, contrast not among them."""
    row = list(NOTHING)
    blend = 2
    for operation in operations:
        if operation == HUE:
            row[6] = 6 * factors[HUE]
            blend = 7
        else:
            factor = factors[operation]
            row[blend : blend + 2] = [factor, 1 - factor if operation == SATURATION else 0.0]
            blend += 2
    return row
