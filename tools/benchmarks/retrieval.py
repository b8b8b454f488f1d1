"""Search and retrieval scores, compared to plain torch code, scikit-learn and faiss.

Features are random (the cost does not depend on them): a query set and a bank, like those of a test and a training list.
Goals: R@1..50 of 3,800 queries in 9,500 x 2,048 in under 2 s on two cores; 20,000 in 240,000 x 2,048 within 6 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Request, machine, measure_in_rounds, table
from sce_video.evaluation import metrics, search

KS = metrics.RECALL_KS
CLASSES = 101
RIVAL = "naive torch"
# name -> (function, arguments, required package, whether --large runs it)
CASES: dict[str, tuple[str, dict[str, str], str, bool]] = {
    RIVAL: ("naive", {}, "torch", False),  # would hold 19 GB of similarities
    "scikit-learn": ("scikit_learn", {}, "sklearn", False),  # copies the bank: over 7 GB
    "faiss IndexFlatIP": ("faiss_index", {}, "faiss", True),
    "recall, engine torch": ("recall", {"engine": "torch"}, "torch", True),
    "recall, engine faiss": ("recall", {"engine": "faiss"}, "faiss", True),
    "recall + mAP": ("recall_and_precision", {}, "torch", True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--queries", type=int, default=3800, help="rows of the query set (HMDB51-sized: 3,800)")
    parser.add_argument("--bank", type=int, default=9500, help="rows of the bank (UCF101-sized: 9,500)")
    parser.add_argument("--width", type=int, default=2048, help="features per row")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; each warms up and runs every case in turn")
    parser.add_argument(
        "--large",
        action="store_true",
        help="Kinetics-sized: 20,000 queries, bank of 240,000, one round without warm-up; half an hour or more",
    )


def run(options: argparse.Namespace) -> None:
    """Measure every case whose package is installed, each in its own process, and print the table."""
    queries, bank = (20_000, 240_000) if options.large else (options.queries, options.bank)
    rounds = 1 if options.large else options.rounds
    print(machine(["torch", "numpy", "scikit-learn", "faiss-cpu"]))
    print(
        f"{queries:,} queries, bank of {bank:,} x {options.width:,} float32 "
        f"({4e-9 * (queries + bank) * options.width:.2f} GB), each set centred by its mean, R@{'/'.join(map(str, KS))}; "
        f"median of {rounds} rounds; peak: the whole process, input included",
        flush=True,
    )
    sizes = {"queries": queries, "bank": bank, "width": options.width}
    requests = {}
    for name, (case, arguments, package, fits) in CASES.items():
        if options.large and not fits:
            print(f"{name}: not run, it needs more than 6 GB of memory")
        elif find_spec(package) is None:
            print(f"{name}: not run, {package} is not installed")
        else:
            requests[name] = Request(__name__, case, {**sizes, **arguments}, warm_up=0 if options.large else 1)
    rows = measure_in_rounds(requests, rounds)
    for name, row in rows.items():
        print(f"{name} found, in percent: " + ", ".join(f"{key} {100 * value:.2f}" for key, value in row.found.items()))
    print(table(rows, next(name for name in (RIVAL, "faiss IndexFlatIP", *rows) if name in rows)))


Found = Callable[[], dict[str, float]]


def make(queries: int, bank: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw query, query_labels, bank and bank_labels for `metrics.recall_at_k`."""
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(queries, width, generator=g).add_(1),
        torch.randint(CLASSES, (queries,), generator=g),
        torch.randn(bank, width, generator=g).add_(1),
        torch.randint(CLASSES, (bank,), generator=g),
    )


def recall(queries: int, bank: int, width: int, engine: search.Engine) -> Found:
    """Compute recall with our search."""
    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        rows = search.nearest(query, bank_rows, max(KS), center="own", engine=engine).rows
        return _recall(rows, query_labels, bank_labels)

    return timed


def recall_and_precision(queries: int, bank: int, width: int) -> Found:
    """Compute recall and mean average precision over the whole bank, also per class."""
    data = make(queries, bank, width)

    def timed() -> dict[str, float]:
        scores = metrics.retrieval_scores(*data)
        assert scores.mean_average_precision is not None
        return {**{f"R@{k}": value for k, value in scores.recall.items()}, "mAP": scores.mean_average_precision}

    return timed


def naive(queries: int, bank: int, width: int) -> Found:
    """Compute recall by centring, normalising, one matrix product and torch.topk."""
    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        unit_query, unit_bank = (F.normalize(rows - rows.mean(dim=0), dim=1) for rows in (query, bank_rows))
        rows = (unit_query @ unit_bank.T).topk(min(max(KS), bank), dim=1).indices
        return _recall(rows, query_labels, bank_labels)

    return timed


def scikit_learn(queries: int, bank: int, width: int) -> Found:
    """Compute recall with NearestNeighbors: brute force, cosine."""
    from sklearn.neighbors import NearestNeighbors

    query, query_labels, bank_rows, bank_labels = make(queries, bank, width)

    def timed() -> dict[str, float]:
        neighbors = NearestNeighbors(n_neighbors=min(max(KS), bank), metric="cosine", algorithm="brute")
        neighbors.fit((bank_rows - bank_rows.mean(dim=0)).numpy())
        rows = neighbors.kneighbors((query - query.mean(dim=0)).numpy(), return_distance=False)
        return _recall(torch.from_numpy(rows), query_labels, bank_labels)

    return timed


def faiss_index(queries: int, bank: int, width: int) -> Found:
    """Compute recall with IndexFlatIP, which copies the normalised bank in blocks."""
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
