"""The augmentation of a run's batches on the device: what is drawn for every clip, and how it is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import augment
from ..augment import batched
from ..data.dataset import Batch
from ..data.packed import Packed
from ..randomness import generator


@dataclass(frozen=True)
class Augmenter:
    """Turns a batch into the clips that the networks get, one float tensor [B, 3, T, size, size] per view.

    views, sizes: each view's options, and its pixels. The clips are normalised by (clip - mean) / std. antialias: smooth
    before shrinking. dtype, channels_last: of the result. batched: all clips at once, for GPUs; else one after another.
    """

    views: Sequence[augment.View]
    sizes: Sequence[int]
    seed: int
    mean: augment.Channels
    std: augment.Channels
    antialias: bool
    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    batched: bool = False

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Copy the batch to the device, draw each clip's parameters, and apply them."""
        keys = list(zip(batch.epochs, batch.rows, strict=True))
        return [
            self._apply(view, batch.views[number].to(self.device), self.draw(number, keys), number, batch.differences[number])
            for number, view in enumerate(self.views)
        ]

    def _apply(
        self, view: augment.View, clips: Packed, drawn: augment.Parameters, number: int, differences: Sequence[bool]
    ) -> Tensor:
        options: dict[str, Any] = {
            "size": self.sizes[number],
            "mean": self.mean,
            "std": self.std,
            "differences": differences,
            "antialias": self.antialias,
            "dtype": self.dtype,
            "channels_last": self.channels_last,
        }
        if self.batched:
            return batched.apply(view, clips.pixels, clips.sources(), drawn, **options)
        return augment.apply(view, clips.unpack(), drawn, **options)

    def draw(self, number: int, keys: Sequence[tuple[int, int]]) -> augment.Parameters:
        """Draw the parameters of view `number` for clips keyed by (epoch, row).

        With several views the number of the view is part of the key; a single view has none (runs of finetuning that were
        begun before continue with the same draws).
        """
        view_key = (number,) if len(self.views) > 1 else ()
        generators = [generator(self.seed, "augment", *key, *view_key) for key in keys]
        return augment.draw(self.views[number], generators)


class Prepared:
    """The batches of a run, augmented; on a GPU one batch ahead, on a stream of its own.

    fetch: returns the next batch, or raises StopIteration. ahead: whether `go_ahead` does anything.
    """

    def __init__(self, augment: Augmenter, fetch: Callable[[], Batch], *, ahead: bool) -> None:
        self.augment = augment
        self.fetch = fetch
        self.ahead = ahead
        self._stream = torch.cuda.Stream(augment.device) if ahead and augment.device.type == "cuda" else None
        self._waiting: tuple[Batch, list[Tensor]] | None = None

    def go_ahead(self) -> None:
        """Fetch the next batch, if there is one, and issue its augmentation; called while the device computes."""
        if self.ahead and self._waiting is None:
            try:
                batch = self.fetch()
            except StopIteration:
                return
            with torch.cuda.stream(self._stream):  # does nothing without a stream
                self._waiting = batch, self.augment(batch)

    def next(self) -> tuple[Batch, list[Tensor]]:
        """Return the next batch and its views; the networks' stream waits for them, the host does not."""
        if self._waiting is None:
            batch = self.fetch()
            return batch, self.augment(batch)
        (batch, views), self._waiting = self._waiting, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self.augment.device)
            current.wait_stream(self._stream)
            for view in views:
                view.record_stream(current)  # the memory belongs to the other stream
        return batch, views
