"""Test a classifier: average the softmax probabilities of each video's views, and write the report files.

Videos without labels are classified in the same way, whole or window by window.

Protocol (SCE, section 6): mean over clips x crops of softmax probabilities, then top-1 and top-5. Accuracy is computed over
the readable videos and over all listed videos, where an unreadable video counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distributed
from ..data import manifest
from ..data.clips import constant_clips
from ..data.dataset import Failure
from ..data.decode import DecodeError, open_row
from ..data.manifest import Video
from ..errors import InputError
from ..runs.files import write_rows
from . import metrics, pictures
from .views import Views, gather_in_order, view_outputs

TOP = 5  # classes in a row of predictions.csv


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
    all_rows, found = gather_in_order(rows, parts)
    failures = [failure for failed in distributed.gather_objects(failures) for failure in failed]
    if found is None:
        raise InputError(f"none of the videos could be read, e.g. {failures[0].reason}")
    return Predictions(found, all_rows, failures)


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
    """Write predictions.csv, per_class.csv, confusion.csv and confusion.png into `folder`; return the accuracy per class name."""
    labels = torch.tensor([ids[row] for row in predictions.rows])
    best = predictions.probabilities.max(dim=1)
    accuracy = metrics.per_class_accuracy(best.indices, labels)
    counts = metrics.confusion_matrix(best.indices, labels, len(classes)).tolist()
    columns = manifest.columns([videos[row] for row in predictions.rows])
    columns["label"] = [classes[ids[row]] for row in predictions.rows]
    write_predictions(folder / "predictions.csv", [*columns], [*zip(*columns.values(), strict=True)], predictions, classes)
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
    right = sum(row[index] for index, row in enumerate(counts))
    title = f"{right} of {len(predictions.rows)} videos right: true classes in rows"
    pictures.save(pictures.confusion(counts, classes, title), folder / "confusion.png")
    return {classes[index]: value for index, value in accuracy.items()}


def write_predictions(
    path: Path, header: Sequence[str], about: Sequence[Sequence[str]], predictions: Predictions, classes: Sequence[str]
) -> None:
    """Write a row for each prediction, what it is about and its TOP best classes, and one for each unreadable video."""
    top = predictions.probabilities.topk(min(TOP, len(classes)), dim=1)
    ranks = ["", *(f"_{rank}" for rank in range(2, top.indices.shape[1] + 1))]
    columns = [f"{name}{rank}" for rank in ranks for name in ("predicted", "probability")]
    rows = [
        [*words, *(value for index, share in zip(*pair, strict=True) for value in (classes[index], f"{share:.4f}"))]
        for words, *pair in zip(about, top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    rows += [[failure.path, *[""] * (len(header) - 1), "unreadable"] for failure in predictions.failures]
    write_rows(path, [*header, *columns], ([*row, *[""] * (len(header) + len(columns) - len(row))] for row in rows))


def predict_windows(
    classifier: Callable[[Tensor], Tensor], videos: Sequence[Video], views: Views, *, every_seconds: float, **options: Any
) -> tuple[Predictions, list[tuple[float, float]]]:
    """Return predictions of single clips, one for every so many seconds of each video, and their (start, end) in its seconds.

    views: its clips_per_video is not used. rows: the video of each clip. options: as in `view_outputs`.
    """
    rows, times, parts, failures = [], [], [], []
    for row, video in enumerate(videos):
        try:
            with open_row(video, options.get("decoder", "auto")) as reader:
                seconds, begin = reader.seconds, reader.begin
        except DecodeError as error:
            failures.append(Failure(video.name, str(error)))
            continue
        count = max(1, math.ceil(seconds / Fraction(every_seconds)))
        cut = replace(views, clips_per_video=count)
        for _, logits, failed in view_outputs(classifier, [video], cut, **options):
            failures += failed
            if len(logits):
                clips = logits.unflatten(1, (count, views.num_crops))[0]  # [1, clips x crops, L] -> [clips, crops, L]
                parts.append(metrics.average_views(clips))
                rows += [row] * count
                ends = constant_clips(seconds, views.clip_seconds, count)
                times += [(float(begin + start), float(begin + min(end, seconds))) for start, end in ends]
    if not parts:
        raise InputError(f"none of the videos could be read, e.g. {failures[0].reason}")
    return Predictions(torch.cat(parts), rows, failures), times
