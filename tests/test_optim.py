"""LARS against the reference's measured steps and against a loop; parameter groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sce_video.training import optim


def test_lars_takes_the_references_steps(conformance: dict[str, Any]) -> None:
    case = conformance["lars"]
    start = {"W": case["W0"], "b": case["b0"], "Z": case["Z0"]}
    params = {name: nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in start.items()}
    optimizer = optim.LARS(
        params.values(),
        lr=case["lr"],
        momentum=case["momentum"],
        weight_decay=case["weight_decay"],
        trust_coefficient=case["trust_coefficient"],
    )
    for expected in case["steps"]:
        for name, param in params.items():
            param.grad = torch.tensor(expected[f"grad_{name}"], dtype=torch.float64)
        optimizer.step()
        for name, param in params.items():
            assert torch.allclose(param, torch.tensor(expected[name], dtype=torch.float64), atol=1e-6)
            momentum = optimizer.state[param]["mu"]
            assert torch.allclose(momentum, torch.tensor(expected[f"mu_{name}"], dtype=torch.float64), atol=1e-6)


def test_lars_leaves_gradients_alone_and_skips_unused_parameters() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    used.grad = torch.full((2, 2), 0.5)
    optim.LARS([used, unused], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(used.grad, torch.full((2, 2), 0.5))
    assert torch.equal(unused, torch.ones(2))


def test_lars_is_the_loop_over_parameters_to_the_bit() -> None:
    """Five steps of all shapes, one weight and one gradient of them 0, against the formula one parameter at a time."""
    g = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3, 3), (8,), (4, 8), (), (2, 2), (2, 2)]
    fused = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
    fused[4].data.zero_()
    fused[5].data.zero_()
    looped = [param.detach().clone() for param in fused]
    momenta = [torch.zeros_like(param) for param in looped]
    optimizer = optim.LARS(fused, lr=0.3, momentum=0.8, weight_decay=0.01, trust_coefficient=0.02)
    for _ in range(5):
        for place, param in enumerate(fused):
            param.grad = torch.randn(param.shape, generator=g) if place != 5 else torch.zeros(param.shape)
        optimizer.step()
        for param, momentum, grad in zip(looped, momenta, [p.grad for p in fused], strict=True):
            assert grad is not None
            if param.ndim > 1:
                grad = torch.add(grad, param, alpha=0.01)
                sizes = param.norm(), grad.norm()
                grad = grad * (0.02 * sizes[0] / sizes[1] if min(sizes) > 0 else 1.0)
            momentum.mul_(0.8).add_(grad)
            param.add_(momentum, alpha=-0.3)
        assert all(torch.equal(a, b) for a, b in zip(fused, looped, strict=True))


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_vectors_are_never_decayed(name: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for param in module.parameters():
        nn.init.ones_(param)
        param.grad = torch.zeros_like(param)
    optimizer = optim.build(
        name, optim.without_decay_on_vectors(module.parameters(), 0.5), lr=0.1, momentum=0.9, trust_coefficient=0.001
    )
    optimizer.step()
    assert (module[0].weight < 1).all(), "matrices are"
    for vector in (module[0].bias, module[1].weight, module[1].bias):
        assert torch.equal(vector, torch.ones(3))


def test_frozen_parameters_are_not_optimised() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = optim.build(
        "sgd", optim.without_decay_on_vectors(module.parameters(), 0.0), lr=0.1, momentum=0.9, trust_coefficient=0.001
    )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


def test_unknown_optimiser_is_named() -> None:
    with pytest.raises(ValueError, match="'adam' is not one of lars, sgd, adamw"):
        optim.build("adam", [], lr=1, momentum=0.9, trust_coefficient=0.001)
