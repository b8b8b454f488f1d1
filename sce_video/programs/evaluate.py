"""Evaluate frozen features in one table: kNN, retrieval, few-shot and linear classification.

All metrics use one extraction of features (`evaluation/extract.py`), which the cache shares with the other programs. The
second row is the same network with random weights.
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/evaluate.py is no program: it is run by python tools/evaluate.py")

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import distributed
from ..config.evaluate import EvaluateConfig
from ..errors import InputError
from ..evaluation import low_shot, metrics, pictures
from ..evaluation.extract import Features
from ..evaluation.task import (
    Task,
    choose_output_file,
    count_videos,
    describe,
    extract,
    format_counts,
    format_headline,
    prepare,
    print_unreadable,
    write_json,
)


def evaluate(cfg: EvaluateConfig) -> dict[str, Any]:
    """Score both encoders, print the table, write the JSON file and return its content on every rank."""
    if (cfg.shots or cfg.linear) and find_spec("sklearn") is None:
        raise InputError(
            "few-shot and linear classification need scikit-learn: pip install -e '.[evaluation]', or disable them with "
            "shots=[] linear=false"
        )
    with distributed.session(cfg.device.value, precision=cfg.precision.value) as device:
        task = prepare(cfg, cfg.train, cfg.test)
        out = choose_output_file(cfg.out, cfg.checkpoint, f"evaluate_{task.test_name}")
        result: dict[str, Any] = describe(task) | {"knn": {"k": cfg.k, "temp": cfg.temp}, "repeats": cfg.repeats, "rows": {}}
        found = extract(task, cfg, device, kinds=("backbone",))
        votes = {name: vote(train, test, task, cfg) for name, (train, test) in found.items()}
        for name, (train, test) in found.items():
            result["rows"][name] = score(train, test, task, cfg, votes[name])
        if distributed.rank() == 0:
            print_table(result, cfg)
            write_json(out, result)
            draw(out.with_name(f"{out.stem}_confusion.png"), found["checkpoint"][1], task, votes["checkpoint"])
        return result


def vote(train: Features, test: Features, task: Task, cfg: EvaluateConfig) -> metrics.KnnScores:
    """Return the votes of the nearest training videos on each test video."""
    bank = train.features["backbone"], task.labels(train, "train")
    return metrics.weighted_knn(test.features["backbone"], task.labels(test, "test"), *bank, k=cfg.k, temp=cfg.temp)


def draw(path: Path, test: Features, task: Task, found: metrics.KnnScores) -> None:
    """Draw the confusion of the nearest neighbours' votes."""
    labels = task.labels(test, "test")
    counts = metrics.confusion_matrix(found.predicted, labels, len(task.classes)).tolist()
    title = f"kNN {100 * found.accuracy:.1f} % of {len(labels)} videos: true classes in rows"
    pictures.save(pictures.confusion(counts, task.classes, title), path)
    print(f"written: {path}")


def score(train: Features, test: Features, task: Task, cfg: EvaluateConfig, knn: metrics.KnnScores) -> dict[str, Any]:
    """Return one encoder's metrics, in [0, 1]. knn: of `vote`."""
    bank, bank_labels = train.features["backbone"], task.labels(train, "train")
    query, query_labels = test.features["backbone"], task.labels(test, "test")
    found = metrics.retrieval_scores(query, query_labels, bank, bank_labels)
    few = {
        str(shots): low_shot.low_shot(bank, bank_labels, query, query_labels, shots=shots, repeats=cfg.repeats, seed=cfg.seed)
        for shots in cfg.shots
    }
    linear = low_shot.linear_on_features(bank, bank_labels, query, query_labels, seed=cfg.seed) if cfg.linear else None
    return count_videos(train, test) | {
        "knn_top1": knn.accuracy,
        "recall_at_k": {str(k): value for k, value in found.recall.items()},
        "mean_average_precision": found.mean_average_precision,
        "few_shot": few,
        "linear": linear,
        "knn_per_class": {task.classes[index]: value for index, value in sorted(knn.class_accuracy.items())},
    }


def print_table(result: dict[str, Any], cfg: EvaluateConfig) -> None:
    """Print the rows in percent, and the unreadable videos."""
    print(format_headline(result))
    shots = [f"{count}-shot" for count in cfg.shots]
    print(
        f"{'':<16}{'kNN':>7}{'R@1':>7}{'R@5':>7}{'mAP':>7}"
        + "".join(f"{name:>14}" for name in shots)
        + (f"{'linear':>9}" if cfg.linear else "")
        + "   scored (test, train)"
    )
    for name, row in result["rows"].items():
        values = [row["knn_top1"], row["recall_at_k"]["1"], row["recall_at_k"]["5"], row["mean_average_precision"]]
        few = (f"{100 * one['mean']:.1f} +- {100 * one['std']:.1f}" for one in row["few_shot"].values())
        print(
            f"{name:<16}"
            + "".join(f"{100 * value:7.1f}" for value in values)
            + "".join(f"{text:>14}" for text in few)
            + (f"{100 * row['linear']['accuracy']:9.1f}" if cfg.linear else "")
            + f"   {format_counts(result, row)}"
        )
    print(
        f"kNN: {cfg.k} neighbours, temperature {cfg.temp:g}"
        + (f"; n-shot: mean and deviation of {cfg.repeats} draws" if cfg.shots else "")
    )
    print_unreadable(result)
