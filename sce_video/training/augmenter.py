"""The augmentation of a run's batches on the device: what is drawn for every clip, and how it is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import augment
from ..data.dataset import Batch
from ..randomness import generator


@dataclass(frozen=True)
class Augmenter:
    """Turns a batch into the clips that the networks get, one float tensor [B, 3, T, size, size] per view.

    views, sizes: each view's options, and its pixels. The clips are normalised by (clip - mean) / std. antialias: smooth
    before shrinking. dtype, channels_last: of the result.
    """

    views: Sequence[augment.View]
    sizes: Sequence[int]
    seed: int
    mean: float
    std: float
    antialias: bool
    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Copy the batch to the device, draw each clip's parameters, and apply them."""
        keys = list(zip(batch.epochs, batch.rows, strict=True))
        return [
            augment.apply(
                view,
                batch.views[number].to(self.device).unpack(),
                self.draw(number, keys),
                size=self.sizes[number],
                mean=self.mean,
                std=self.std,
                differences=batch.differences[number],
                antialias=self.antialias,
                dtype=self.dtype,
                channels_last=self.channels_last,
            )
            for number, view in enumerate(self.views)
        ]

    def draw(self, number: int, keys: Sequence[tuple[int, int]]) -> augment.Parameters:
        """Draw the parameters of view `number` for clips keyed by (epoch, row).

        With several views the number of the view is part of the key; a single view has none (runs of finetuning that were
        begun before continue with the same draws).
        """
        view_key = (number,) if len(self.views) > 1 else ()
        generators = [generator(self.seed, "augment", *key, *view_key) for key in keys]
        return augment.draw(self.views[number], generators)
