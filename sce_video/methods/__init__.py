"""Methods, one file each, and the contract between a method and the loop.

A method is an `nn.Module` with the three parts of `Method`; its options are a dataclass in the same file. The optimiser
trains every parameter of it that requires a gradient. `Step.keys` and `Step.figures` may stay empty. A `Step` is the output
for one micro-batch; an optimiser step adds the gradients of `optim.accumulate` of them.

A method whose loss is a sum of parts may have `count_parts(num_views) -> int` and `forward(..., part=0, keys=())`: the loop
then goes forward and backward through one part after another, which needs the memory of one. The losses of the parts add up
to the loss; `keys` are those of part 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ..errors import InputError


class Step(NamedTuple):
    """The result of a forward pass.

    loss: scalar of this micro-batch.
    keys: outputs of the momentum encoder on this rank, one tensor [B, C] per global view; the loop concatenates those of all
        micro-batches and passes them to `after_step`.
    figures: for the log; tensors (scalars) are averaged over micro-batches and ranks, floats are the same everywhere.
    """

    loss: Tensor
    keys: Sequence[Tensor] = ()
    figures: Mapping[str, Tensor | float] = {}


class Rows(Protocol):
    """Which clips a micro-batch holds, one entry per clip.

    rows: index in the list of videos; sources: index of the video that the clip shows, another one where the first could
    not be read; epochs: with the row, the key of all random draws.
    """

    rows: list[int]
    sources: list[int]
    epochs: list[int]


class Method(Protocol):
    """The contract that the loop relies on."""

    online: Any
    """The encoder that is kept and evaluated: an `nn.Module` with a `backbone`."""

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of a micro-batch of views, float [B, 3, T, S, S] each; `where` is the share of steps made."""

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Update the method after an optimiser step, never after a skipped one; keys [accumulate * B, C] of this rank by view."""


def check_method(method: object) -> None:
    """Raise InputError with a sentence per missing part unless `method` fulfils the contract."""
    problems = []
    if not isinstance(method, nn.Module):
        raise InputError(f"a method must be an nn.Module, not {type(method).__name__}")
    if not isinstance(getattr(getattr(method, "online", None), "backbone", None), nn.Module):
        problems.append("`online` must be a module with a `backbone`: the encoder that is kept and evaluated")
    try:
        inspect.signature(method.forward).bind([], None, 0.0)
    except TypeError:
        problems.append("`forward` must take (views, batch, where) and return a Step")
    if not callable(getattr(method, "after_step", None)):
        problems.append("`after_step(keys, where)` is missing: it may do nothing")
    if not any(parameter.requires_grad for parameter in method.parameters()):
        problems.append("no parameter requires a gradient: there is nothing to train")
    if problems:
        raise InputError(f"{type(method).__name__} is not a method: {'; '.join(problems)} (see sce_video/methods)")
