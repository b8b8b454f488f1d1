"""Optimisers: LARS written here, SGD and AdamW from torch, and the grouping of parameters for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling in the form of MoCo-v3 and SCE (You et al., 2017; no epsilon, no clipping).

    ::

        matrices:          g = grad + weight_decay * p;  g *= trust_coefficient * |p| / |g|   (1 if either norm is 0)
        vectors, scalars:  g = grad                       (no decay, no scaling: biases and norms get the plain rate)
        mu = momentum * mu + g;  p -= lr * mu
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust_coefficient: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient; gradients themselves are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            updates = self._scaled_gradients(params, group["weight_decay"], group["trust_coefficient"])
            for param in params:
                if "mu" not in self.state[param]:
                    self.state[param]["mu"] = torch.zeros_like(param)
            momenta = [self.state[param]["mu"] for param in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(params, momenta, alpha=-group["lr"])
        return loss

    @staticmethod
    def _scaled_gradients(params: list[Tensor], weight_decay: float, trust_coefficient: float) -> list[Tensor]:
        gradients: list[Tensor] = [param.grad for param in params if param.grad is not None]
        matrices = [i for i, param in enumerate(params) if param.ndim > 1]
        if matrices:
            weights = [params[i] for i in matrices]
            decayed = torch._foreach_add([gradients[i] for i in matrices], weights, alpha=weight_decay)
            p, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, decayed))
            # torch.where keeps the decision on the device: no synchronisation in the step.
            trust = torch.where((p > 0) & (g > 0), trust_coefficient * p / g, torch.ones_like(p))
            torch._foreach_mul_(decayed, trust.unbind())
            for i, gradient in zip(matrices, decayed, strict=True):
                gradients[i] = gradient
        return gradients


def without_decay_on_vectors(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters so that only those of two or more dimensions are decayed (biases and norms are not)."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def with_slower_part(
    parameters: Iterable[nn.Parameter], slower: Iterable[nn.Parameter], weight_decay: float, scale: float
) -> list[dict[str, Any]]:
    """Group parameters as `without_decay_on_vectors`; where `scale` is not 1, those of `slower` have it as their `lr_scale`."""
    if scale == 1:
        return without_decay_on_vectors(parameters, weight_decay)
    own, inside = list(parameters), {id(parameter) for parameter in slower}
    scaled, rest = ([p for p in own if (id(p) in inside) is chosen] for chosen in (True, False))
    groups = ({**group, "lr_scale": scale} for group in without_decay_on_vectors(scaled, weight_decay))
    return [*groups, *without_decay_on_vectors(rest, weight_decay)]


def by_depth(stages: Sequence[Iterable[nn.Parameter]], weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Group the parameters of stages, input first, with `lr_scale` = layer_decay ** (stages behind it); 1 for the last.

    The program multiplies its learning rate by a group's lr_scale (Clark et al., 2020, for finetuning).
    """
    return [
        {**group, "lr_scale": layer_decay ** (len(stages) - 1 - depth)}
        for depth, parameters in enumerate(stages)
        for group in without_decay_on_vectors(parameters, weight_decay)
    ]


def build(
    name: str, groups: list[dict[str, Any]], *, lr: float, momentum: float, trust_coefficient: float
) -> torch.optim.Optimizer:
    """Build `lars`, `sgd` or `adamw` over groups of parameters, each with its weight_decay.

    momentum is SGD's and LARS's, and AdamW's first beta.
    """
    if name == "lars":
        return LARS(groups, lr, momentum, trust_coefficient=trust_coefficient)
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr, betas=(momentum, 0.999))
    raise ValueError(f"optimiser {name!r} is not one of lars, sgd, adamw")
