"""Pretraining methods, one file each, and the contract between a method and the loop.

A method is an `nn.Module` with
  - `online`: the encoder that is kept;
  - `forward(views, where) -> Step`: the loss of a micro-batch, views being float [B, 3, T, S, S] each;
  - `after_step(keys, where)`: what happens once per optimiser step, after it.
`where` is step / total_steps in [0, 1).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """What a forward pass gives: the scalar loss, this rank's keys [B, C] view by view, and figures to log."""

    loss: Tensor
    keys: list[Tensor]
    figures: dict[str, Tensor]
