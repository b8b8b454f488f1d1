"""Schedules at the points that matter, and against the reference's values where we mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from sce_video.schedules import cosine, linear, warmup_cosine


def rate(step: int, warmup_steps: int = 3, total_steps: int = 10) -> float:
    return warmup_cosine(step, base=1.0, warmup_steps=warmup_steps, total_steps=total_steps)


def test_warmup_learns_from_the_first_step_and_reaches_the_base_rate() -> None:
    assert [rate(step) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_after_warmup_the_rate_is_the_references(conformance: dict[str, Any]) -> None:
    expected = conformance["lr_warmup3_total10_base1"]["lr_at_step"]
    assert [rate(step) for step in range(3, 10)] == pytest.approx(expected[3:10], abs=1e-8)
    expected = conformance["lr_nowarmup_total5_base0.025"]["lr_at_step"]
    mine = [warmup_cosine(step, base=0.025, warmup_steps=0, total_steps=5) for step in range(6)]
    assert mine == pytest.approx(expected, abs=1e-8)


def test_the_rate_stays_zero_after_the_end() -> None:
    """The reference's rises again (its defect 19)."""
    assert [rate(step) for step in (10, 11, 50)] == [0, 0, 0]


def test_target_momentum_is_the_references(conformance: dict[str, Any]) -> None:
    case = conformance["ema_cosine_m0_0.99_T10"]
    mine = [cosine(i / 9, case["initial_momentum"], 1.0) for i in range(10)]
    assert mine == pytest.approx(case["momentum_used_at_batch"], abs=1e-8)


def test_coefficient_and_temperature_schedules(conformance: dict[str, Any]) -> None:
    for case in conformance["coefficient_and_temperature_schedules"]:
        schedule = {"linear": linear, "cosine": cosine}[case["scheduler"]]
        mine = [schedule(step / case["max_step"], case["initial"], case["final"]) for step in range(5)]
        expected = case["values"]
        if case["scheduler"] == "linear" and case["final"] > case["initial"]:
            expected = expected[::-1]  # the reference runs backwards here (its defect 20)
        assert mine == pytest.approx(expected, abs=1e-8)


def test_schedules_are_constant_outside_their_range() -> None:
    assert cosine(-1, 2, 3) == linear(-1, 2, 3) == 2
    assert cosine(2, 2, 3) == linear(2, 2, 3) == 3
