"""Mixup and CutMix: mix each clip and its label with its neighbour's, for supervised training.

Neighbours are 0 and 1, 2 and 3, ...: with an even number of clips per rank the pairs do not depend on the number of
ranks. An unpaired last clip is not mixed. A pair draws from generators keyed by its first row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..randomness import generator
from .batched_colors import box_edges, in_boxes
from .tables import Block


@dataclass(frozen=True)
class Mixing:
    """The drawn parameters of B clips, on the CPU."""

    shares: Tensor  # float32 [B]: mixup, each clip's own share in [0, 1]; 1: not mixed
    boxes: Tensor  # float64 [B, 4]: CutMix, the pasted box: top, left, height, width as shares of the side; 0: none


def draw(seed: int, keys: Sequence[tuple[int, int]], *, mixup_alpha: float, cutmix_alpha: float) -> Mixing:
    """Draw a share from Beta(alpha, alpha) per pair; with both alphas above 0 each pair gets mixup or CutMix at random.

    keys: (epoch, row) of each clip. A box has the frame's sides times sqrt(1 - share) and a uniform centre, and is clipped
    to the frame (Yun et al., 2019).
    """
    shares, boxes = torch.ones(len(keys)), torch.zeros(len(keys), 4, dtype=torch.float64)
    for first in range(0, len(keys) - 1, 2):
        key = keys[first]
        cut = cutmix_alpha > 0
        if cut and mixup_alpha > 0:
            cut = torch.rand((), generator=generator(seed, "mixup or cutmix", *key)).item() < 0.5
        numbers = np.random.default_rng(generator(seed, "cutmix" if cut else "mixup", *key).initial_seed())
        alpha = cutmix_alpha if cut else mixup_alpha
        share = float(numbers.beta(alpha, alpha))
        if not cut:
            shares[first : first + 2] = share
            continue
        half = math.sqrt(1 - share) / 2
        edges = [(max(center - half, 0.0), min(center + half, 1.0)) for center in numbers.uniform(size=2)]
        boxes[first : first + 2] = torch.tensor([low for low, _ in edges] + [high - low for low, high in edges])
    return Mixing(shares, boxes)


def apply(clips: Tensor, targets: Tensor, drawn: Mixing) -> tuple[Tensor, Tensor]:
    """Mix neighbouring clips [B, C, T, H, W] and targets [B, L] (Zhang et al., 2018; Yun et al., 2019).

    Mixup: share * own + (1 - share) * neighbour's, for clips and targets. CutMix: the box of all frames is the neighbour's,
    and so is the box's share of the target.
    """
    height, width = clips.shape[-2:]
    edges = box_edges(drawn.boxes, height, width)
    top, bottom, left, right = edges.T
    target_shares = drawn.shares - ((bottom - top) * (right - left) / (height * width)).float()
    rows = torch.arange(len(clips)) ^ 1
    rows[-1] = len(clips) - 1 if len(clips) % 2 else rows[-1]
    block = Block(clips.device)
    parts = [block.add(table) for table in (drawn.shares, target_shares, edges, rows)]
    block.send()
    own, of_target = parts[0].numbers().view(-1, 1, 1, 1, 1), parts[1].numbers().view(-1, 1)
    partner = parts[3].integers()
    others = clips.index_select(0, partner)
    mixed = torch.where(in_boxes(parts[2].integers(), height, width), others, own * clips + (1 - own) * others)
    return mixed.to(clips.dtype), of_target * targets + (1 - of_target) * targets.index_select(0, partner)
