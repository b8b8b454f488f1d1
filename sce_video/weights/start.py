"""Begin pretraining from weights: `init=` takes what `load_encoder` reads, for the backbone and, where it fits, the projector.

The networks are loaded before the first step only: a continued run takes everything from its own checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .load import load_encoder

Normalise = float | Sequence[float]  # of all channels, or of each


def start_from_weights(
    method: Any, path: str, backbone: str, *, key: str, branch: str = "auto", mean: Normalise, std: Normalise
) -> list[str]:
    """Load a run or file into the method's online encoder and the copies of it, and return lines on what matched.

    backbone: the method's; key, branch: see `load_encoder`; mean, std: the normalisation of the run. Raises InputError as
    `load_encoder` does, with what matched, for weights that fill less than the backbone.
    """
    encoder = load_encoder(path, backbone, key=key, branch=branch)
    _fill(method, "backbone", encoder.backbone.state_dict())
    lines = [f"init: {encoder.report}"]
    if encoder.projector is not None:
        own, given = getattr(method.online, "projector", None), encoder.projector.state_dict()
        shapes = {key: value.shape for key, value in own.state_dict().items()} if own is not None else {}
        if shapes == {key: value.shape for key, value in given.items()}:
            _fill(method, "projector", given)
            lines.append("init: the projector is taken over too")
        else:
            lines.append("init: the projector begins with random weights, for its widths are others")
    if (encoder.mean, encoder.std) != (mean, std):
        lines.append(
            f"init: these weights were trained on (clip - {encoder.mean}) / {encoder.std}, this run normalises by "
            f"{mean} and {std}: set augment.mean and augment.std to them"
        )
    return lines


@torch.no_grad()
def _fill(method: Any, part: str, weights: dict[str, Tensor]) -> None:
    """Copy weights into `online.<part>`, and wherever the method holds a copy of it, such as a momentum encoder's."""
    state: dict[str, Tensor] = method.state_dict()
    before = {key: state[f"online.{part}.{key}"].clone() for key in weights}
    for name, value in state.items():
        key = name.partition(f"{part}.")[2]
        if key in weights and value.shape == before[key].shape and torch.equal(value, before[key]):
            value.copy_(weights[key])
