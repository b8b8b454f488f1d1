"""Drawn parameters follow their definition, can be saved and applied again, and depend on the clip's generator only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sce_video import augment
from sce_video.augment import rand_augment
from sce_video.randomness import generator

COUNT = 20_000
CRITICAL = 0.0138  # Kolmogorov-Smirnov distance that 20,000 uniform draws exceed once in 1,000 times
VIEW = augment.View(
    gray_probability=0.3,
    blur_probability=0.5,
    solarize_probability=0.4,
    erase_probability=0.6,
    erase_area_max=0.2,
    erase_ratio_min=0.5,
    erase_ratio_max=2.0,
    rand_augment_operations=2,
)


def keyed(count: int, purpose: str = "draws") -> list[torch.Generator]:
    return [generator(purpose, i) for i in range(count)]


@pytest.fixture(scope="module")
def drawn() -> augment.Parameters:
    return augment.draw(VIEW, keyed(COUNT))


def distance(values: Tensor) -> float:
    """Kolmogorov-Smirnov distance to the uniform distribution on [0, 1]."""
    ordered = values.double().sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return max((ordered - steps).abs().max().item(), (ordered - steps + 1 / len(values)).abs().max().item())


def test_factors_and_sigma_are_uniform_in_their_ranges(drawn: augment.Parameters) -> None:
    for column, (low, high) in enumerate([(0.2, 1.8), (0.2, 1.8), (0.6, 1.4), (-0.2, 0.2)]):
        assert distance((drawn.factors[:, column] - low) / (high - low)) < CRITICAL
    assert distance((drawn.sigma - 0.1) / 1.9) < CRITICAL
    strong = augment.draw(augment.View(brightness=1.5), keyed(COUNT)).factors[:, 0]
    assert distance(strong / 2.5) < CRITICAL, "from max(0, 1 - x) to 1 + x"


def test_decisions_have_their_probability_and_are_independent(drawn: augment.Parameters) -> None:
    flags = {
        "jitter": (drawn.jitter, 0.8),
        "gray": (drawn.gray, 0.3),
        "blur": (drawn.blur, 0.5),
        "solarize": (drawn.solarize, 0.4),
        "flip": (drawn.flip, 0.5),
        "erased": (drawn.erased[:, 2] > 0, 0.6),
    }
    for name, (values, p) in flags.items():
        assert abs(values.double().mean().item() - p) < 4 * (p * (1 - p) / COUNT) ** 0.5, name
    together = torch.stack([values.double() for values, _ in flags.values()])
    correlation = torch.corrcoef(together) - torch.eye(len(together))
    assert correlation.abs().max() < 4 / COUNT**0.5


def test_bernoulli_draws_are_independent_unlike_torchaugs(drawn: augment.Parameters) -> None:
    """The reference transforms exactly floor(pB) or ceil(pB) clips of a batch; independent draws vary more."""
    counts = drawn.gray[:19_200].view(-1, 64).sum(dim=1).double()
    assert counts.var().item() == pytest.approx(64 * 0.3 * 0.7, rel=0.35)


def test_all_orders_of_the_jitters_are_equally_likely(drawn: augment.Parameters) -> None:
    codes = drawn.order @ torch.tensor([64, 16, 4, 1])
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    expected = COUNT / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-squared, 23 degrees of freedom, 1e-3


def test_erased_boxes_follow_their_definition(drawn: augment.Parameters) -> None:
    top, left, tall, wide = drawn.erased[drawn.erased[:, 2] > 0].unbind(1)
    some = math.sqrt(COUNT / len(top)) * CRITICAL
    assert distance((tall * wide - 0.02) / 0.18) < some
    assert distance((wide / tall).log() / (2 * math.log(2)) + 0.5) < some
    assert distance(top / (1 - tall)) < some
    assert distance(left / (1 - wide)) < some


def test_rand_augment_takes_all_operations_alike_and_both_signs(drawn: augment.Parameters) -> None:
    names = rand_augment.OPERATIONS
    counts = torch.bincount(drawn.operations.flatten(), minlength=len(names)).double()
    expected = 2 * COUNT / len(names)
    assert ((counts - expected) ** 2 / expected).sum() < 34.5  # chi-squared, 13 degrees of freedom, 1e-3
    for index, name in enumerate(names):
        values = drawn.magnitudes[drawn.operations == index]
        size = rand_augment.magnitude(name, 9)
        assert ((values.abs() - size).abs() < 1e-12).all(), name
        if name in rand_augment.SIGNED:
            share = (values < 0).double().mean().item()
            assert abs(share - 0.5) < 4 * (0.25 / len(values)) ** 0.5, name
        else:
            assert (values >= 0).all()


def test_what_is_switched_on_leaves_the_other_draws_as_they_are(drawn: augment.Parameters) -> None:
    plain = augment.draw(augment.View(gray_probability=0.3, blur_probability=0.5, solarize_probability=0.4), keyed(50))
    for name, values in plain.to_dict().items():
        if name not in ("operations", "magnitudes", "erased"):
            assert torch.equal(values, getattr(drawn, name)[:50]), name
    assert plain.operations.shape == (50, 0)
    assert not plain.erased.any()


def test_draws_do_not_depend_on_the_batch(drawn: augment.Parameters) -> None:
    alone = augment.draw(VIEW, keyed(8)[7:])
    for name, values in alone.to_dict().items():
        assert torch.equal(values[0], getattr(drawn, name)[7]), name


def test_parameters_can_be_saved_and_applied_again(drawn: augment.Parameters, tmp_path: Path) -> None:
    few = drawn[[3, 1, 2]]
    torch.save(few.to_dict(), tmp_path / "drawn.pt")
    again = augment.Parameters.from_dict(torch.load(tmp_path / "drawn.pt", weights_only=True))
    clips = [torch.randint(256, (2, 30, 40, 3), dtype=torch.uint8) for _ in range(3)]
    first, second = (augment.apply(VIEW, clips, parameters, size=32, mean=0.45, std=0.225) for parameters in (few, again))
    assert torch.equal(first, second)


def test_parameters_of_another_version_are_refused(drawn: augment.Parameters) -> None:
    tensors = drawn[:3].to_dict()
    with pytest.raises(ValueError, match="saved by another version"):
        augment.Parameters.from_dict({name: values for name, values in tensors.items() if name != "flip"})
    with pytest.raises(ValueError, match="different numbers of clips"):
        augment.Parameters.from_dict({**tensors, "flip": tensors["flip"][:2]})
