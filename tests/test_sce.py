"""The method against three full training steps of the reference, and its order of operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sce_video.losses import sce
from sce_video.methods.sce import SCE
from sce_video.models.encoder import Encoder


def linear(weights: list[list[float]]) -> nn.Linear:
    weight = torch.tensor(weights, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = weight
    return layer


def method(case: dict[str, Any], **options: Any) -> SCE:
    online = Encoder(linear(case["A_trunk"]), linear(case["P_projector"]), linear(case["R_predictor"]))
    settings = {
        "queue_size": 8,
        "width": 2,
        "temp": case["temp"],
        "temp_target": case["temp_m"],
        "coeff": case["coeff"],
        "momentum": case["initial_momentum"],
        "mask_positive": False,
    }
    result = SCE(online, **{**settings, **options})
    angles = torch.tensor(case["queue_initial_deg"], dtype=torch.float64) * math.pi / 180
    result.queue.keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    return result


def views(indices: list[int], count: int = 2) -> list[Tensor]:
    """The case's inputs: float32 values of its formula, cast to float64."""
    return [
        torch.tensor([[math.sin(0.7 * i + 1.3 * v + 0.9 * j + 0.2) for j in range(3)] for i in indices]).float().double()
        for v in range(count)
    ]


def test_three_training_steps_are_the_references(conformance: dict[str, Any]) -> None:
    case = conformance["one_training_step"]
    model = method(case)
    optimizer = torch.optim.SGD(model.online.parameters(), lr=case["lr"])
    for index, expected in enumerate(case["symmetric_two_views"]["steps"]):
        step = model(views([2 * index, 2 * index + 1]), None, where=0.0)
        assert step.loss.item() == pytest.approx(expected["loss"], abs=1e-6)
        optimizer.zero_grad()
        step.loss.backward()
        close(model.online.backbone.weight.grad, expected["grad_trunk"])
        optimizer.step()
        close(model.online.backbone.weight, expected["trunk_after_optimizer"])
        close(model.target.backbone.weight, expected["momentum_trunk_before_ema"])
        where = index / 2  # the reference's clock ends at exactly 1
        assert model.momentum_at(where) == pytest.approx(expected["momentum_value_used"])
        model.after_step(step.keys, where)
        close(model.target.backbone.weight, expected["momentum_trunk_after_ema"])
        close(model.target.projector.weight, expected["momentum_projector_after_ema"])
        close(model.queue.keys, expected["queue_columns"])
        assert model.queue.pointer == expected["queue_ptr"]
    close(model.online.predictor.weight, case["symmetric_two_views"]["predictor_final"])


def close(value: Tensor, expected: list[list[float]]) -> None:
    assert torch.allclose(value, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_asymmetric_uses_view_one_as_the_only_key(conformance: dict[str, Any]) -> None:
    case = conformance["one_training_step"]
    model = method(case, symmetric=False)
    x = views([0, 1])
    step = model(x, None, where=0.0)
    key, query = model.target(x[0]), model.online(x[1])
    expected = sce(query, key, model.queue.keys, temp=0.1, temp_target=0.05, coeff=0.5, mask_positive=False)
    assert step.loss.item() == pytest.approx(expected.item())
    assert len(step.keys) == 1


def test_local_views_are_queries_only(conformance: dict[str, Any]) -> None:
    """With views 1, 2 global and 3 local the loss is the mean over the pairs (1,2) (2,1) (1,3) (2,3)."""
    case = conformance["one_training_step"]
    model = method(case)
    x = views([0, 1], count=3)
    step = model(x, None, where=0.0)
    keys, queries = [model.target(view) for view in x[:2]], [model.online(view) for view in x]
    options = {"temp": 0.1, "temp_target": 0.05, "coeff": 0.5, "mask_positive": False}
    pairs = [(1, 0), (2, 0), (0, 1), (2, 1)]
    expected = sum(sce(queries[j], keys[i], model.queue.keys, **options).item() for j, i in pairs) / 4
    assert step.loss.item() == pytest.approx(expected)
    assert len(step.keys) == 2


def loss_in_loops(queries: list[Tensor], keys: list[Tensor], queue: Tensor, pairs: list[tuple[int, int]]) -> float:
    """SCE with temperatures 0.1 and 0.05 and coeff 0.5, own key masked, over (query view, key view), number by number."""
    losses = []
    for j, i in pairs:
        for query, key in zip(queries[j].tolist(), keys[i].tolist(), strict=True):
            others = queue.tolist()
            near = [math.exp(sum(a * b for a, b in zip(query, other, strict=True)) / 0.1) for other in [key, *others]]
            alike = [math.exp(sum(a * b for a, b in zip(key, other, strict=True)) / 0.05) for other in others]
            target = [0.5, *[0.5 * value / sum(alike) for value in alike]]
            losses.append(-sum(w * math.log(value / sum(near)) for w, value in zip(target, near, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("symmetric", "count", "pairs"),
    [
        (True, 4, [(1, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]),
        (False, 4, [(1, 0), (2, 0), (3, 0)]),
        (True, 2, [(1, 0), (0, 1)]),
    ],
)
def test_loss_over_pairs_of_views_equals_loops(
    symmetric: bool, count: int, pairs: list[tuple[int, int]], conformance: dict[str, Any]
) -> None:
    """Two global views and the rest local: (V - 1) G pairs, of which none has a local key; V - 1 when asymmetric."""
    model = method(conformance["one_training_step"], symmetric=symmetric, mask_positive=True)
    x = views([0, 1, 5], count=count)
    step = model(x, None, where=0.0)
    with torch.no_grad():
        queries, keys = [model.online(view) for view in x], [model.target(view) for view in x]
    assert step.loss.item() == pytest.approx(loss_in_loops(queries, keys, model.queue.keys, pairs), abs=1e-12)
    assert len(step.keys) == (2 if symmetric else 1)
    before = model.queue.keys.clone()
    model.after_step(step.keys, where=0.0)
    changed = (model.queue.keys != before).any(dim=1).sum().item()
    assert changed == 3 * len(step.keys), "only global views enter the queue"


def test_loss_sees_the_queue_before_this_steps_keys(conformance: dict[str, Any]) -> None:
    model = method(conformance["one_training_step"])
    x = views([0, 1])
    first = model(x, None, where=0.0)
    again = model(x, None, where=0.0)
    assert first.loss.item() == again.loss.item()
    model.after_step(first.keys, where=1.0)
    assert model(x, None, where=0.0).loss.item() != again.loss.item()


def test_target_takes_no_part_in_the_gradient(conformance: dict[str, Any]) -> None:
    model = method(conformance["one_training_step"])
    model(views([0, 1]), None, where=0.0).loss.backward()
    assert all(param.grad is None for param in model.target.parameters())
    assert all(param.grad is not None for param in model.online.parameters())


def test_target_keeps_its_own_batch_norm_statistics() -> None:
    online = Encoder(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = SCE(online, queue_size=8, width=2, temp=0.1, temp_target=0.05, coeff=0.5, momentum=0.9)
    x = [torch.randn(4, 3) + 5, torch.randn(4, 3) - 5]
    model(x, None, where=0.0)
    assert model.target.training
    seen = [branch.backbone.running_mean for branch in (model.online, model.target)]
    assert torch.allclose(*seen)
    assert not torch.allclose(seen[0], torch.zeros(3))


def test_schedules_of_coeff_and_temperature() -> None:
    online = Encoder(nn.Identity(), nn.Linear(3, 2))
    settings = {"queue_size": 8, "width": 2, "temp": 0.1, "temp_target": 0.05, "coeff": 0.5, "momentum": 0.9}
    model = SCE(online, **settings, coeff_start=1.0, temp_target_start=0.1, warmup=0.2)
    assert [model.coeff_at(w) for w in (0, 0.1, 0.2, 1)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert [model.temp_target_at(w) for w in (0, 0.1, 0.2, 1)] == pytest.approx([0.1, 0.075, 0.05, 0.05])
    constant = SCE(online, **settings)
    assert constant.coeff_at(0) == 0.5
    assert constant.temp_target_at(0) == 0.05


def test_figures_tell_collapse_from_spread() -> None:
    online = Encoder(nn.Identity(), nn.Identity())
    settings = {"queue_size": 64, "width": 8, "temp": 0.1, "temp_target": 0.05, "coeff": 0.5, "momentum": 0.9}
    model = SCE(online, **settings)
    spread = F.normalize(torch.randn(512, 8), dim=1)
    assert model([spread, spread], None, where=0.0).figures["feature_std"].item() == pytest.approx(1.0, abs=0.1)
    same = spread[:1].expand(512, 8)
    assert model([same, same], None, where=0.0).figures["feature_std"].item() == pytest.approx(0.0, abs=1e-5)
