"""Search and retrieval scores against rivals: the obvious torch code, scikit-learn and faiss.

Features are random (the cost does not depend on them), in two sets as after extraction of a test and a training list.
Goals: R@1..50 of 3,800 queries in 9,500 x 2,048 in under 2 s on two cores; 20,000 in 240,000 x 2,048 within 6 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import metrics, search
from .measure import machine, measure, table

KS = metrics.RECALL_KS
CLASSES = 101
RIVAL = "naive torch"
# name -> (function, its own arguments, package that it needs, holds all similarities at once)
CASES: dict[str, tuple[str, dict[str, str], str, bool]] = {
    RIVAL: ("naive", {}, "torch", True),
    "scikit-learn": ("scikit_learn", {}, "sklearn", False),
    "faiss IndexFlatIP": ("faiss_index", {}, "faiss", False),
    "recall, engine torch": ("recall", {"engine": "torch"}, "torch", False),
    "recall, engine faiss": ("recall", {"engine": "faiss"}, "faiss", False),
    "recall + mAP": ("recall_and_precision", {}, "torch", False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--queries", type=int, default=3800, help="rows of the query set (HMDB51-sized: 3,800)")
    parser.add_argument("--bank", type=int, default=9500, help="rows of the bank (UCF101-sized: 9,500)")
    parser.add_argument("--width", type=int, default=2048, help="features per row")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of each case, after one warm-up")
    parser.add_argument(
        "--large",
        action="store_true",
        help="Kinetics-sized: 20,000 queries, bank of 240,000, one repetition without warm-up, takes about half an hour",
    )


def run(options: argparse.Namespace) -> None:
    """Measure every case that can run here, each in its own process, and print the table."""
    queries, bank = (20_000, 240_000) if options.large else (options.queries, options.bank)
    repeats, warm_up = (1, 0) if options.large else (options.repeats, 1)
    print(machine(["torch", "numpy", "scikit-learn", "faiss-cpu"]))
    print(
        f"{queries:,} queries, bank of {bank:,} x {options.width:,} float32 ({4e-9 * (queries + bank) * options.width:.2f} GB), "
        f"each set centred by its mean, R@{'/'.join(map(str, KS))}; median of {repeats}, warm-up {warm_up}; "
        "peak: the whole process, input included",
        flush=True,
    )
    rows, rival = {}, RIVAL
    for name, (case, arguments, package, holds_all) in CASES.items():
        if holds_all and options.large:
            print(f"{name}: not run, its {4e-9 * queries * bank:.1f} GB of similarities are what is to be avoided")
            rival = "faiss IndexFlatIP"
        elif find_spec(package) is None:
            print(f"{name}: not run, {package} is not installed")
        else:
            sizes = {"queries": queries, "bank": bank, "width": options.width}
            rows[name] = measure(__name__, case, {**sizes, **arguments}, repeats=repeats, warm_up=warm_up)
            found = ", ".join(f"{key} {100 * value:.2f}" for key, value in rows[name].found.items())
            print(f"{name}: {rows[name].median:.2f} s, found in percent: {found}", flush=True)
    print(table(rows, rival if rival in rows else next(iter(rows))))


Found = Callable[[], dict[str, float]]


def make(queries: int, bank: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query, query_labels, bank, bank_labels as `metrics.recall_at_k` takes them."""
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(queries, width, generator=g).add_(1),
        torch.randint(CLASSES, (queries,), generator=g),
        torch.randn(bank, width, generator=g).add_(1),
        torch.randint(CLASSES, (bank,), generator=g),
    )


def recall(queries: int, bank: int, width: int, engine: search.Engine) -> Found:
    """Ours, recall only."""
    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        rows = search.nearest(query, bank_rows, max(KS), center="own", engine=engine).rows
        return _recall(rows, query_labels, bank_labels)

    return timed


def recall_and_precision(queries: int, bank: int, width: int) -> Found:
    """Ours, recall and mean average precision over the whole bank, also per class."""
    data = make(queries, bank, width)

    def timed() -> dict[str, float]:
        scores = metrics.retrieval_scores(*data)
        assert scores.mean_average_precision is not None
        return {**{f"R@{k}": value for k, value in scores.recall.items()}, "mAP": scores.mean_average_precision}

    return timed


def naive(queries: int, bank: int, width: int) -> Found:
    """Centre, normalise, one matrix product, torch.topk."""
    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        unit_query, unit_bank = (F.normalize(rows - rows.mean(dim=0), dim=1) for rows in (query, bank_rows))
        rows = (unit_query @ unit_bank.T).topk(min(max(KS), bank), dim=1).indices
        return _recall(rows, query_labels, bank_labels)

    return timed


def scikit_learn(queries: int, bank: int, width: int) -> Found:
    """NearestNeighbors, brute force, cosine."""
    from sklearn.neighbors import NearestNeighbors

    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        neighbors = NearestNeighbors(n_neighbors=min(max(KS), bank), metric="cosine", algorithm="brute")
        neighbors.fit((bank_rows - bank_rows.mean(dim=0)).numpy())
        rows = neighbors.kneighbors((query - query.mean(dim=0)).numpy(), return_distance=False)
        return _recall(torch.from_numpy(rows), query_labels, bank_labels)

    return timed


def faiss_index(queries: int, bank: int, width: int) -> Found:
    """IndexFlatIP, which copies the normalised bank; added in blocks."""
    import faiss

    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        index = faiss.IndexFlatIP(width)
        mean = bank_rows.mean(dim=0)
        for block in bank_rows.split(search.BANK_ROWS):
            index.add(F.normalize(block - mean, dim=1).numpy())
        rows = index.search(F.normalize(query - query.mean(dim=0), dim=1).numpy(), min(max(KS), bank))[1]
        return _recall(torch.from_numpy(rows), query_labels, bank_labels)

    return timed


def _recall(rows: Tensor, query_labels: Tensor, bank_labels: Tensor) -> dict[str, float]:
    hits = bank_labels[rows] == query_labels[:, None]
    return {f"R@{k}": hits[:, :k].any(dim=1).double().mean().item() for k in KS}
