"""Test a classifier: average the softmax probabilities of each video's views, and write the report files.

Protocol (SCE, section 6): mean over clips x crops of softmax probabilities, then top-1 and top-5. Accuracy is computed over
the readable videos and over all listed videos, where an unreadable video counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import distributed
from ..data.dataset import Failure
from ..data.manifest import Video
from ..errors import InputError
from ..runs.files import write_rows
from . import metrics
from .views import Views, view_outputs


class Predictions(NamedTuple):
    """Class probabilities float32 [N, num_classes] of the readable videos, in the manifest's order."""

    probabilities: Tensor
    rows: list[int]
    failures: list[Failure]


def predict(
    classifier: Callable[[Tensor], Tensor],
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    decoder: str = "auto",
    workers: int = 0,
    title: str = "",
) -> Predictions:
    """Return the mean over views of the softmax probabilities of all videos, on every rank.

    classifier: float clips in 0..1 [B, 3, T, size, size] -> logits [B, num_classes].
    Raises InputError if no video can be read.
    """
    rows: list[int] = []
    parts: list[Tensor] = []
    failures: list[Failure] = []
    for done, logits, failed in view_outputs(
        classifier, videos, views, device=device, decoder=decoder, workers=workers, title=title
    ):
        failures += failed
        if done:
            rows += done
            parts.append(metrics.average_views(logits))
    found = distributed.gather_rows(torch.cat(parts) if parts else None)
    shares = distributed.gather_objects((rows, failures))
    failures = [failure for _, failed in shares for failure in failed]
    all_rows = [row for own, _ in shares for row in own]
    if found is None:
        raise InputError(f"none of the videos could be read, e.g. {failures[0].reason}")
    order = sorted(range(len(all_rows)), key=all_rows.__getitem__)
    return Predictions(found[order], sorted(all_rows), failures)


def scores(predictions: Predictions, ids: Sequence[int], listed: int) -> dict[str, float]:
    """Return top1 and top5 in 0..1 over the scored videos, top1_of_listed, and the counts `scored` and `listed`.

    ids: the class of each row of the manifest.
    """
    labels = torch.tensor([ids[row] for row in predictions.rows])
    top = metrics.topk_accuracy(predictions.probabilities, labels, (1, 5))
    scored = len(predictions.rows)
    return {
        "top1": top[1],
        "top5": top[5],
        "top1_of_listed": top[1] * scored / listed,
        "scored": float(scored),
        "listed": float(listed),
    }


def write_report(
    folder: Path, predictions: Predictions, videos: Sequence[Video], ids: Sequence[int], classes: Sequence[str]
) -> dict[str, float]:
    """Write predictions.csv, per_class.csv and confusion.csv into `folder`; return the accuracy per class name."""
    labels = torch.tensor([ids[row] for row in predictions.rows])
    best = predictions.probabilities.max(dim=1)
    accuracy = metrics.per_class_accuracy(best.indices, labels)
    counts = metrics.confusion_matrix(best.indices, labels, len(classes)).tolist()
    found = zip(predictions.rows, best.indices.tolist(), best.values.tolist(), strict=True)
    write_rows(
        folder / "predictions.csv",
        ["path", "label", "predicted", "probability"],
        [
            *([videos[row].path, classes[ids[row]], classes[index], f"{value:.4f}"] for row, index, value in found),
            *([failure.path, "", "unreadable", ""] for failure in predictions.failures),
        ],
    )
    write_rows(
        folder / "per_class.csv",
        ["label", "videos", "top1"],
        [[name, sum(counts[index]), f"{accuracy[index]:.4f}" if index in accuracy else ""] for index, name in enumerate(classes)],
    )
    write_rows(
        folder / "confusion.csv",
        ["true \\ predicted", *classes],
        [[name, *row] for name, row in zip(classes, counts, strict=True)],
    )
    return {classes[index]: value for index, value in accuracy.items()}
