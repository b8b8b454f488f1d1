"""Linear classification of frozen features, with a few videos per class or with all of them.

Fits scikit-learn's multinomial logistic regression (lbfgs) to L2-normalised features, as in Tian et al., "Rethinking
few-shot image classification" (ECCV 2020, section 3). Features are not standardised: one video per class is too little to
estimate a scale per feature. Needs the extra `evaluation` (scikit-learn).

Shape legend: M training rows, Q test rows, C feature width.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..randomness import generator

REGULARISATION = (0.1, 1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C: the inverse of the regularisation strength


class LowShot(TypedDict):
    """Mean and sample standard deviation (0 for one repeat) of the accuracies per_repeat, in [0, 1].

    short_classes: class -> number of training videos, for classes with fewer than `shots`.
    not_converged: number of repeats whose fit reached `max_steps`.
    """

    mean: float
    std: float
    per_repeat: list[float]
    shots: int
    short_classes: dict[int, int]
    not_converged: int


class LinearOnFeatures(TypedDict):
    """Accuracy on the test rows, overall and per class, in [0, 1].

    held_out: C -> accuracy on the held-out training rows; chosen: the C with the highest (the smallest among ties).
    not_converged: number of fits, including the final one, that reached `max_steps`.
    """

    accuracy: float
    class_accuracy: dict[int, float]
    chosen: float
    held_out: dict[float, float]
    not_converged: int


def low_shot(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: int,
    repeats: int = 10,
    seed: int = 0,
    regularisation: float = 1.0,
    max_steps: int = 1000,
) -> LowShot:
    """Return the test accuracy of classifiers trained on `shots` videos per class, drawn anew for each repeat.

    train_features [M, C], test_features [Q, C] float, finite; labels [M], [Q] integers. The draw is a function of (seed,
    repeat, class) and of the class's rows. A class with fewer videos uses all of them; a test class without training
    videos counts as wrong. Raises ValueError for mismatched input, fewer than two training classes, or shots or repeats
    below 1.
    """
    if shots < 1 or repeats < 1:
        raise ValueError(f"shots and repeats must be at least 1, got {shots} and {repeats}")
    train, train_ids, test, test_ids = _check_rows(train_features, train_labels, test_features, test_labels)
    rows_of = _group_by_class(train_ids)
    accuracies, stopped = [], 0
    for repeat in range(repeats):
        chosen = np.concatenate([_shuffle(rows, seed, "low_shot", repeat, label)[:shots] for label, rows in rows_of.items()])
        predicted, converged = _fit(train[chosen], train_ids[chosen], test, regularisation, max_steps)
        accuracies.append(float((predicted == test_ids).mean()))
        stopped += not converged
    return {
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if repeats > 1 else 0.0,
        "per_repeat": accuracies,
        "shots": shots,
        "short_classes": {label: len(rows) for label, rows in rows_of.items() if len(rows) < shots},
        "not_converged": stopped,
    }


def linear_on_features(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    choices: Sequence[float] = REGULARISATION,
    held_out_share: float = 0.2,
    max_steps: int = 1000,
) -> LinearOnFeatures:
    """Return the test accuracy of a classifier trained on all training rows. Does not choose C on the test rows.

    A draw keyed by (seed, class) holds out `held_out_share` in (0, 1) of each class's training rows, rounded down. The C of
    `choices` with the best held-out accuracy fits the final classifier to all rows. Input and errors as in `low_shot`.
    """
    if not choices or not 0 < held_out_share < 1:
        raise ValueError(f"choices must not be empty and held_out_share in (0, 1), got {choices}, {held_out_share}")
    train, train_ids, test, test_ids = _check_rows(train_features, train_labels, test_features, test_labels)
    held = np.zeros(len(train), dtype=bool)
    for label, rows in _group_by_class(train_ids).items():
        held[_shuffle(rows, seed, "linear_on_features", label)[: int(held_out_share * len(rows))]] = True
    if len(choices) > 1 and not held.any():
        raise ValueError(
            f"no class has the {int(1 / held_out_share)} videos needed to hold one out and choose C: "
            "give a single choice, or a larger held_out_share"
        )
    held_out, stopped = {}, 0
    for choice in sorted(choices) if len(choices) > 1 else ():
        predicted, converged = _fit(train[~held], train_ids[~held], train[held], choice, max_steps)
        held_out[float(choice)] = float((predicted == train_ids[held]).mean())
        stopped += not converged
    best = max(held_out, key=lambda choice: held_out[choice]) if held_out else float(choices[0])
    predicted, converged = _fit(train, train_ids, test, best, max_steps)
    right = predicted == test_ids
    return {
        "accuracy": float(right.mean()),
        "class_accuracy": {label: float(right[rows].mean()) for label, rows in _group_by_class(test_ids).items()},
        "chosen": best,
        "held_out": held_out,
        "not_converged": stopped + (not converged),
    }


def _check_rows(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> list[np.ndarray[Any, Any]]:
    """Return unit rows float32 and labels int64 as arrays, in the order of the arguments. Raises ValueError."""
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"features [M, C] and [Q, C] must share C, got {list(train.shape)} and {list(test.shape)}")
    arrays = []
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != rows.shape[:1] or labels.is_floating_point() or not len(rows):
            raise ValueError(
                f"{name}_labels must be one integer per row of at least one, "
                f"got {labels.dtype} {list(labels.shape)} for {len(rows)} rows"
            )
        if not rows.isfinite().all():
            raise ValueError(f"{name}_features hold NaN or infinity: leave those videos out")
        arrays += [F.normalize(rows.detach().float(), dim=1).cpu().numpy(), labels.cpu().long().numpy()]
    if len(np.unique(arrays[1])) < 2:
        raise ValueError("train_labels must hold at least two classes, got one")
    return arrays


def _group_by_class(labels: np.ndarray[Any, Any]) -> dict[int, np.ndarray[Any, Any]]:
    return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def _shuffle(rows: np.ndarray[Any, Any], *key: int | str) -> np.ndarray[Any, Any]:
    """Return the rows in an order that depends only on the key (seed, purpose, ...)."""
    order: np.ndarray[Any, Any] = rows[torch.randperm(len(rows), generator=generator(*key)).numpy()]
    return order


def _fit(
    rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], test: np.ndarray[Any, Any], regularisation: float, steps: int
) -> tuple[np.ndarray[Any, Any], bool]:
    """Return the classes predicted for the test rows, and whether the fit converged within `steps`."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as missing:
        raise InputError("classifying features needs scikit-learn: pip install 'sce_video[evaluation]'") from missing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # Training with one video per class is intended.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than", UserWarning)
        model = LogisticRegression(C=regularisation, max_iter=steps).fit(rows, labels)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return model.predict(test), not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
