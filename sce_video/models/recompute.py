"""Activation checkpointing: stages of a backbone are computed again in the backward pass instead of kept (Chen et al., 2016)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch.utils.checkpoint
from torch import nn

Norm = nn.modules.batchnorm._BatchNorm


def change_passes(method: Any, *, fused_norm: bool, recompute: bool) -> None:
    """Let a method's networks run fused norms, and its online backbone recompute stages; weights do not change."""
    if fused_norm:
        importlib.import_module("sce_video.models.norm").fuse_norms(method)
    if recompute:
        recompute_stages(method.online.backbone)


def recompute_stages(backbone: nn.Module) -> None:
    """Let every stage with parameters but the first (the stem) keep only its input; weights and results do not change."""
    stages = [stage for stage in getattr(backbone, "blocks", backbone.children()) if any(True for _ in stage.parameters())]
    for stage in stages[1:]:
        stage.forward = partial(_run, stage, stage.forward)


def _run(stage: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(
        forward, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, stage)
    )


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(stage)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """Keep the second forward pass from entering the running statistics again."""
    norms = [norm for norm in stage.modules() if isinstance(norm, Norm) and norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
