"""The losses equal the reference's measured values, an independent version in loops, and their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sce_video.losses import info_nce, sce


def unit(degrees: list[float]) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def vectors(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    return unit(case["q_deg"]), unit(case["k_deg"]), unit(case["queue_deg"])


def sce_in_loops(
    query: Tensor, key: Tensor, others: list[Tensor], own: list[int], temp: float, temp_target: float, coeff: float
) -> float:
    """Equations 5 to 7 of the paper term by term, on plain numbers."""
    total = 0.0
    for b in range(len(query)):
        logits = [float(query[b] @ n) / temp for n in others]
        positive = own[b]
        if positive < 0:  # the own key is not among the others
            logits.append(float(query[b] @ key[b]) / temp)
            positive = len(others)
        normaliser = sum(math.exp(logit) for logit in logits)
        relations = {i: math.exp(float(key[b] @ n) / temp_target) for i, n in enumerate(others) if i != own[b]}
        mass = sum(relations.values())
        for i, logit in enumerate(logits):
            weight = (1 - coeff) * relations.get(i, 0.0) / mass + (coeff if i == positive else 0.0)
            total -= weight * math.log(math.exp(logit) / normaliser)
    return total / len(query)


def random_units(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_queue_only_equals_the_reference(conformance: dict[str, Any]) -> None:
    case = conformance["sce_queue_only"]
    query, key, queue = vectors(case)
    for expected in case["cases"]:
        options = {"temp": expected["temp"], "temp_target": expected["temp_m"], "coeff": expected["coeff"]}
        masked = sce(query, key, queue, **options)
        query_with_gradient = query.clone().requires_grad_()
        as_coded = sce(query_with_gradient, key, queue, **options, mask_positive=False)
        as_coded.backward()
        assert masked.item() == pytest.approx(expected["loss_if_positive_masked_as_in_paper"], abs=1e-6)
        assert as_coded.item() == pytest.approx(expected["loss_reference"], abs=1e-6)
        assert torch.allclose(query_with_gradient.grad, torch.tensor(expected["grad_q"], dtype=torch.float64), atol=1e-6)


def test_masking_the_positive_matters_with_a_far_queue(conformance: dict[str, Any]) -> None:
    case = conformance["sce_queue_only_small_queue_leak"]
    query, key, queue = vectors(case)
    for expected in case["cases"]:
        options = {"temp": case["temp"], "temp_target": case["temp_m"], "coeff": expected["coeff"]}
        masked, unmasked = (sce(query, key, queue, **options, mask_positive=mask).item() for mask in (True, False))
        assert masked == pytest.approx(expected["loss_if_positive_masked_as_in_paper"], abs=1e-6)
        assert unmasked == pytest.approx(expected["loss_reference"], abs=1e-6)


def test_keys_of_the_batch_as_candidates_equal_the_reference(conformance: dict[str, Any]) -> None:
    case = conformance["sce_keys_plus_queue"]
    query, key, queue = vectors(case)
    for expected in case["cases"]:
        loss = sce(query, key, queue, temp=case["temp"], temp_target=case["temp_m"], coeff=expected["coeff"], batch_keys=key)
        assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)


def test_coeff_one_is_info_nce(conformance: dict[str, Any]) -> None:
    case = conformance["sce_queue_only"]
    query, key, queue = vectors(case)
    expected = pytest.approx(case["moco_loss_temp0_1"], abs=1e-8)
    assert info_nce(query, key, queue, temp=0.1).item() == expected
    assert sce(query, key, queue, temp=0.1, temp_target=0.05, coeff=1.0).item() == expected


def test_coeff_zero_is_ressl_plus_ceiling(conformance: dict[str, Any]) -> None:
    """ReSSL excludes the positive from the query's softmax too; the difference is -log(1 - p_positive)."""
    identity = conformance["identity_coeff0_masked_equals_ressl_plus_ceiling"]
    query, key, queue = vectors(conformance["sce_queue_only"])
    ressl = -((key @ queue.T / 0.05).softmax(1) * (query @ queue.T / 0.1).log_softmax(1)).sum(1).mean()
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / 0.1
    ceiling = -(1 - logits.softmax(1)[:, 0]).log().mean()
    assert ressl.item() == pytest.approx(identity["ressl"], abs=1e-6)
    loss = sce(query, key, queue, temp=0.1, temp_target=0.05, coeff=0.0)
    assert loss.item() == pytest.approx((ressl + ceiling).item(), abs=1e-9)
    assert loss.item() == pytest.approx(identity["sum"], abs=1e-6)


@pytest.mark.parametrize("coeff", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("with_keys", [False, True])
def test_equals_the_paper_term_by_term(coeff: float, with_keys: bool) -> None:
    query, key, queue = (random_units(n, 6, seed=n) for n in (3, 3, 11))
    if with_keys:
        gathered = torch.cat([random_units(3, 6, seed=9), key, random_units(3, 6, seed=10)])
        loss = sce(query, key, queue, temp=0.1, temp_target=0.05, coeff=coeff, batch_keys=gathered, batch_offset=3)
        expected = sce_in_loops(query, key, [*gathered, *queue], [3, 4, 5], 0.1, 0.05, coeff)
    else:
        loss = sce(query, key, queue, temp=0.1, temp_target=0.05, coeff=coeff)
        expected = sce_in_loops(query, key, list(queue), [-1] * 3, 0.1, 0.05, coeff)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_flows_through_the_query_only() -> None:
    query, key, queue = (random_units(n, 4, seed=n).requires_grad_() for n in (2, 2, 5))
    sce(query, key, queue, temp=0.1, temp_target=0.05, coeff=0.5, batch_keys=key).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_loss_is_float32_under_autocast() -> None:
    query, key, queue = (random_units(n, 64, seed=n).float() for n in (8, 9, 300))
    key = key[:8]
    options = {"temp": 0.1, "temp_target": 0.05, "coeff": 0.5}
    exact = sce(query.double(), key.double(), queue.double(), **options).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sce(query, key, queue, **options)
        nce = info_nce(query, key, queue, temp=0.1)
    assert loss.dtype == nce.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-5)


def test_nothing_to_compare_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a queue or batch_keys"):
        sce(unit([0]), unit([0]), None, temp=0.1, temp_target=0.05, coeff=0.5)
