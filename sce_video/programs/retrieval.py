"""Video retrieval: does a test video have one of its class among its k nearest training videos?

Protocol (SCE, section 6): average the features of clips_per_video x num_crops views, centre each set by its own mean,
L2-normalise, rank by cosine similarity. Every table has a baseline, the same network with random weights. `variants` adds
other common protocols from the same decode: one view, not centred, the projector's output. Every training row may be found,
also another segment of the query's video: a warning counts such queries (`manifest.compare`).
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/retrieval.py is no program: it is run by python tools/retrieval.py")

from pathlib import Path
from typing import Any

from .. import distributed
from ..config.evaluate import RetrievalConfig
from ..evaluation import metrics, pictures, search
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

KS = (1, 5, 10, 20, 25, 50)
DRAWN, NEIGHBOURS = 6, 5  # queries in the picture, and what they found
PROTOCOL = "backbone, all views, centred"
VARIANTS = {
    PROTOCOL: ("backbone", True),
    "backbone, all views": ("backbone", False),
    "backbone, 1 view, centred": ("backbone_1_view", True),
    "backbone, 1 view": ("backbone_1_view", False),
    "projector, all views, centred": ("projector", True),
    "projector, all views": ("projector", False),
}


def retrieve(cfg: RetrievalConfig) -> dict[str, Any]:
    """Score both encoders, print the table, write the JSON file and return its content on every rank."""
    with distributed.session(cfg.device.value, precision=cfg.precision.value) as device:
        task = prepare(cfg, cfg.train, cfg.test)
        out = choose_output_file(cfg.out, cfg.checkpoint, f"retrieval_{task.test_name}")
        result: dict[str, Any] = describe(task) | {"rows": {}}
        variants = choose(cfg, with_projector=task.encoders["checkpoint"].projector is not None)
        found = extract(task, cfg, device, kinds=sorted({kind for kind, _ in variants.values()}))
        for name, (bank, query) in found.items():
            result["rows"][name] = score(bank, query, task, variants)
        if distributed.rank() == 0:
            print_table(result)
            write_json(out, result)
            draw(out.with_name(f"{out.stem}_retrieved.png"), *found["checkpoint"], task)
        return result


def draw(path: Path, bank: Features, query: Features, task: Task) -> None:
    """Draw a test video of each of some classes and its nearest training videos."""
    labels = task.labels(query, "test").tolist()
    first = {label: row for row, label in reversed([*enumerate(labels)])}
    rows = [first[label] for label in sorted(first)][:: max(1, len(first) // DRAWN)][:DRAWN]
    features, others = query.features["backbone"], bank.features["backbone"]
    # Centred by the mean of all queries, as in the table, though only those that are drawn are searched.
    shifted = features[rows] - features.mean(dim=0) + others.mean(dim=0)
    near = search.nearest(shifted, others, NEIGHBOURS, center="bank").rows.tolist()
    shown = [
        (task.test[query.rows[row]], [task.train[bank.rows[hit]] for hit in hits]) for row, hits in zip(rows, near, strict=True)
    ]
    pictures.save(pictures.retrieved(shown, f"Test videos and their {NEIGHBOURS} nearest training videos, nearest first"), path)
    print(f"written: {path}")


def choose(cfg: RetrievalConfig, *, with_projector: bool) -> dict[str, tuple[str, bool]]:
    """Return the variants to score: label -> (kind of feature, centred)."""
    if not cfg.variants:
        return {PROTOCOL: VARIANTS[PROTOCOL]}
    return {label: kind for label, kind in VARIANTS.items() if with_projector or kind[0].startswith("backbone")}


def score(bank: Features, query: Features, task: Task, variants: dict[str, tuple[str, bool]]) -> dict[str, Any]:
    """Return one encoder's scores by variant, and the numbers of scored videos."""
    row: dict[str, Any] = count_videos(bank, query)
    for label, (kind, center) in variants.items():
        found = metrics.retrieval_scores(
            query.features[kind],
            task.labels(query, "test"),
            bank.features[kind],
            task.labels(bank, "train"),
            ks=KS,
            center=center,
        )
        row[label] = {
            "recall_at_k": {str(k): value for k, value in found.recall.items()},
            "mean_average_precision": found.mean_average_precision,
            "queries_of_absent_classes": found.absent,
            "per_class": {
                task.classes[index]: {
                    "queries": found.class_queries[index],
                    "recall_at_k": {str(k): value for k, value in found.class_recall[index].items()},
                    "mean_average_precision": found.class_precision[index],
                }
                for index in sorted(found.class_queries)
            },
        }
    return row


def print_table(result: dict[str, Any]) -> None:
    """Print the rows in percent, and the unreadable videos."""
    print(format_headline(result))
    print(f"{'':<32}" + "".join(f"{f'R@{k}':>7}" for k in KS) + f"{'mAP':>7}   scored (test, train)")
    for name, row in result["rows"].items():
        print(f"{name}:")
        for label in (label for label in VARIANTS if label in row):
            values = [row[label]["recall_at_k"][str(k)] for k in KS] + [row[label]["mean_average_precision"]]
            counts = f"   {format_counts(result, row)}" if label == PROTOCOL else ""
            print(f"  {label:<30}" + "".join(f"{100 * value:7.1f}" for value in values) + counts)
    print_unreadable(result)
