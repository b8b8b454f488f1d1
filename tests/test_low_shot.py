"""Few-shot and linear classification equal scikit-learn by hand; row order and test rows do not change the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sce_video.evaluation.low_shot import linear_on_features, low_shot
from sce_video.randomness import generator

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def data(noise: float = 1.5, classes: int = 4, train: int = 60, test: int = 80) -> Data:
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, 12, generator=g)
    train_labels, test_labels = torch.arange(train) % classes, torch.arange(test) % classes
    return (
        centers[train_labels] + noise * torch.randn(train, 12, generator=g),
        train_labels,
        centers[test_labels] + noise * torch.randn(test, 12, generator=g),
        test_labels,
    )


def by_hand(train: Tensor, train_labels: Tensor, test: Tensor, regularisation: float) -> np.ndarray:
    model = LogisticRegression(C=regularisation, max_iter=1000)
    return model.fit(F.normalize(train, dim=1), train_labels).predict(F.normalize(test, dim=1))


def test_low_shot_equals_scikit_learn_on_the_rows_it_says_it_draws() -> None:
    train, train_labels, test, test_labels = data()
    result = low_shot(train, train_labels, test, test_labels, shots=3, repeats=4, seed=5)
    expected = []
    for repeat in range(4):
        rows = torch.cat(
            [
                (train_labels == label).nonzero()[:, 0][torch.randperm(15, generator=generator(5, "low_shot", repeat, label))][:3]
                for label in range(4)
            ]
        )
        predicted = by_hand(train[rows], train_labels[rows], test, 1.0)
        expected.append((predicted == test_labels.numpy()).mean())
    assert result["per_repeat"] == pytest.approx(expected)
    assert result["mean"] == pytest.approx(np.mean(expected))
    assert result["std"] == pytest.approx(np.std(expected, ddof=1))
    assert len(set(expected)) > 1
    assert result["shots"] == 3
    assert result["short_classes"] == {}
    assert result["not_converged"] == 0


def test_one_video_per_class_warns_of_nothing_and_has_no_spread_in_one_repeat() -> None:
    result = low_shot(*data(noise=0.01), shots=1, repeats=1, seed=0)
    assert result["mean"] == 1.0
    assert result["std"] == 0.0


def test_more_shots_help_and_the_seed_decides_the_draw() -> None:
    few, many = (low_shot(*data(), shots=shots, repeats=5, seed=0) for shots in (1, 15))
    assert many["mean"] > few["mean"]
    assert low_shot(*data(), shots=1, repeats=5, seed=0) == few
    assert low_shot(*data(), shots=1, repeats=5, seed=1)["per_repeat"] != few["per_repeat"]
    assert low_shot(*data(), shots=1, repeats=2, seed=0)["per_repeat"] == few["per_repeat"][:2]


def test_all_shots_leave_nothing_to_draw() -> None:
    result = low_shot(*data(), shots=15, repeats=3, seed=0)
    assert result["std"] == pytest.approx(0.0)


def test_classes_with_fewer_videos_use_what_they_have_and_are_named() -> None:
    train, train_labels, test, test_labels = data()
    keep = (train_labels != 2) | (torch.arange(60) < 8)  # rows 2 and 6 of class 2
    result = low_shot(train[keep], train_labels[keep], test, test_labels, shots=5, repeats=2, seed=0)
    assert result["short_classes"] == {2: 2}


def test_a_test_class_without_training_videos_is_missed() -> None:
    train, train_labels, test, test_labels = data(noise=0.01)
    keep = train_labels != 1
    assert low_shot(train[keep], train_labels[keep], test, test_labels, shots=2, repeats=1)["mean"] == 0.75
    linear = linear_on_features(train[keep], train_labels[keep], test, test_labels)
    assert linear["class_accuracy"] == {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0}


def test_a_fit_that_is_stopped_is_reported_and_does_not_warn() -> None:
    assert low_shot(*data(), shots=5, repeats=3, max_steps=1)["not_converged"] == 3
    assert linear_on_features(*data(), choices=(1.0, 10.0), max_steps=1)["not_converged"] == 3
    assert linear_on_features(*data(), choices=(1.0, 10.0))["not_converged"] == 0


def test_linear_equals_scikit_learn_by_hand() -> None:
    train, train_labels, test, test_labels = data()
    choices = (0.01, 1.0, 100.0)
    result = linear_on_features(train, train_labels, test, test_labels, seed=3, choices=choices)
    held = torch.zeros(60, dtype=torch.bool)
    for label in range(4):
        rows = (train_labels == label).nonzero()[:, 0]
        held[rows[torch.randperm(15, generator=generator(3, "linear_on_features", label))][:3]] = True
    on_held = {
        choice: (by_hand(train[~held], train_labels[~held], train[held], choice) == train_labels[held].numpy()).mean()
        for choice in choices
    }
    assert result["held_out"] == pytest.approx(on_held)
    assert result["chosen"] == max(choices, key=lambda choice: on_held[choice])
    predicted = by_hand(train, train_labels, test, result["chosen"])
    assert result["accuracy"] == pytest.approx((predicted == test_labels.numpy()).mean())
    for label, share in result["class_accuracy"].items():
        assert share == pytest.approx((predicted == label)[test_labels.numpy() == label].mean())


def test_the_choice_of_regularisation_never_sees_the_test_rows() -> None:
    train, train_labels, test, test_labels = data()
    plain = linear_on_features(train, train_labels, test, test_labels)
    other = linear_on_features(train, train_labels, -test, (test_labels + 1) % 4)
    assert (other["held_out"], other["chosen"]) == (plain["held_out"], plain["chosen"])
    assert other["accuracy"] != plain["accuracy"]


def test_one_choice_needs_no_held_out_rows() -> None:
    train, train_labels, test, test_labels = data(train=8)
    assert linear_on_features(train, train_labels, test, test_labels, choices=(2.0,))["held_out"] == {}
    with pytest.raises(ValueError, match="no class has the 5 videos"):
        linear_on_features(train, train_labels, test, test_labels)


def test_scale_of_a_row_does_not_matter() -> None:
    train, train_labels, test, test_labels = data()
    scaled = train * torch.linspace(0.5, 2, 60)[:, None]
    first, second = (low_shot(rows, train_labels, test, test_labels, shots=4, repeats=2) for rows in (train, scaled))
    assert first["per_repeat"] == second["per_repeat"]


def test_bad_input_is_refused() -> None:
    train, train_labels, test, test_labels = data()
    spoilt = test.clone()
    spoilt[3, 3] = float("nan")
    for bad, message in (
        ((train[:, :5], train_labels, test, test_labels), r"must share C, got \[60, 5\] and \[80, 12\]"),
        ((train, train_labels[1:], test, test_labels), r"train_labels must be one integer .* \[59\] for 60 rows"),
        ((train, train_labels, test[:0], test_labels[:0]), "test_labels .* for 0 rows"),
        ((train, train_labels, test, test_labels.float()), "test_labels must be one integer .* torch.float32"),
        ((train, train_labels, spoilt, test_labels), "test_features hold NaN or infinity"),
        ((train, train_labels * 0, test, test_labels), "at least two classes"),
    ):
        with pytest.raises(ValueError, match=message):
            low_shot(*bad, shots=1)
        with pytest.raises(ValueError, match=message):
            linear_on_features(*bad)
    with pytest.raises(ValueError, match="shots and repeats must be at least 1, got 0 and 10"):
        low_shot(*data(), shots=0)
    with pytest.raises(ValueError, match="held_out_share in"):
        linear_on_features(*data(), held_out_share=1.0)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.exceptions", None)
    with pytest.raises(ValueError, match=r"pip install 'sce_video\[evaluation\]'"):
        low_shot(*data(), shots=1)
