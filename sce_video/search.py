"""Exact nearest neighbours by cosine similarity, in bounded memory.

The bank may fill a third of the memory, so no centred or normalised copy of it is ever made: blocks of BANK_ROWS rows are
centred, normalised, multiplied with blocks of QUERY_ROWS queries, and a running top k is merged over the blocks. 20,000
queries against 240,000 x 2,048 need the inputs (2.1 GB) and about 1 GB more, the interpreter with torch included.

Ties: of equal similarities the lower bank index comes first. torch.topk promises nothing about ties, so one neighbour more
than asked for is taken, and where that one ties with the last, the row is sorted again by a stable sort. All blocks have
the same shape (the last one overlaps the one before), so that equal bank rows get equal similarities.

Shape legend: Q queries, N bank entries, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Center = Literal["none", "own", "bank"]
Engine = Literal["auto", "torch", "faiss"]

BANK_ROWS = 8192  # bank rows centred and normalised at once: 64 MiB at C = 2,048
QUERY_ROWS = 1024  # queries multiplied with them at once: 32 MiB of similarities
SIMILARITIES = 2**27  # most similarities that `similarity_rows` holds at once: 512 MiB
FAISS_FROM = 100_000  # engine "auto" takes faiss, where it is installed, for banks of at least so many rows on a CPU


class Neighbors(NamedTuple):
    """The k nearest bank entries of each query: similarity float32 [Q, k] in [-1, 1], best first; rows int64 [Q, k] of them.

    `engine` says what searched: "torch" or "faiss".
    """

    similarity: Tensor
    rows: Tensor
    engine: str


@torch.no_grad()
def nearest(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    center: Center = "none",
    engine: Engine = "auto",
    query_rows: int = QUERY_ROWS,
    bank_rows: int = BANK_ROWS,
) -> Neighbors:
    """Return the min(k, N) bank rows with the largest cosine similarity to each query; ties: the lower index first.

    query [Q, C], bank [N, C] floating point on one device; the arithmetic is float32, whatever torch's float32 matrix
    product gives on that device. `center` subtracts before normalising: "own" each set's own mean (SCE's retrieval
    protocol), "bank" the bank's mean from both (for few queries: one query is its own mean). A row of zeros has
    similarity 0 to everything. `query_rows` and `bank_rows` bound the memory and do not change the result beyond float
    rounding. ValueError for empty, mismatched or non-finite input.
    """
    mean_of_query, mean_of_bank = check_and_center(query, bank, center)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, len(bank))
    chosen = choose_engine(engine, bank)
    search = _search_faiss if chosen == "faiss" else _search_torch
    unit_query = unit_rows(query, mean_of_query)
    best: tuple[Tensor, Tensor] | None = None
    for first, skip, unit_bank in _bank_blocks(bank, mean_of_bank, bank_rows):
        similarity, index = search(unit_query, unit_bank, k, skip, query_rows)
        index += first
        # Everything in `best` has a lower index than this block, so a stable sort keeps the rule for ties.
        best = (similarity, index) if best is None else _merge(best, (similarity, index), k)
    assert best is not None
    return Neighbors(*best, chosen)


@torch.no_grad()
def similarity_rows(
    query: Tensor, bank: Tensor, *, center: Center = "none", query_rows: int | None = None, bank_rows: int = BANK_ROWS
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first, similarity float32 [q, N]): all similarities of queries [first, first + q), block after block.

    Arguments and errors as in `nearest`. A block has at most SIMILARITIES entries unless `query_rows` says otherwise; it
    is overwritten by the next one.
    """
    mean_of_query, mean_of_bank = check_and_center(query, bank, center)
    size = query_rows or max(1, SIMILARITIES // len(bank))
    held = torch.empty(min(size, len(query)), len(bank), device=bank.device)
    for first_query in range(0, len(query), size):
        unit_query = unit_rows(query[first_query : first_query + size], mean_of_query)
        block = held[: len(unit_query)]
        for first, skip, unit_bank in _bank_blocks(bank, mean_of_bank, bank_rows):
            for row, part in enumerate(unit_query.split(QUERY_ROWS)):
                product = (part @ unit_bank.T)[:, skip:]
                block[row * QUERY_ROWS :][: len(part), first + skip : first + skip + product.shape[1]] = product
        yield first_query, block


def choose_engine(engine: Engine, bank: Tensor) -> Literal["torch", "faiss"]:
    """Return the library that searches: "auto" is faiss for FAISS_FROM rows or more on a CPU if it is installed."""
    installed = find_spec("faiss") is not None
    if engine == "auto":
        return "faiss" if installed and bank.device.type == "cpu" and len(bank) >= FAISS_FROM else "torch"
    if engine not in ("torch", "faiss"):
        raise ValueError(f"engine={engine!r} is not known: auto, torch or faiss")
    if engine == "faiss" and bank.device.type != "cpu":
        raise ValueError(f"engine='faiss' searches on the CPU, the bank is on {bank.device}: use engine='torch'")
    if engine == "faiss" and not installed:
        raise ValueError("engine='faiss' needs faiss: pip install 'sce_video[search]', or use engine='torch'")
    return engine


def check_and_center(query: Tensor, bank: Tensor, center: Center) -> tuple[Tensor | None, Tensor | None]:
    """Return the means float32 [C] to subtract from query and bank (None: nothing), or raise ValueError.

    Refused: anything but two matrices of one width and device with at least one row each, and values that are not finite.
    """
    if center not in ("none", "own", "bank"):
        raise ValueError(f"center={center!r} is not known: none, own or bank")
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1]:
        raise ValueError(f"query [Q, C] and bank [N, C] must share C, got {list(query.shape)} and {list(bank.shape)}")
    if not len(query) or not len(bank) or not bank.shape[1]:
        raise ValueError(
            f"a search needs queries and a bank, got {len(query)} and {len(bank)} rows of {bank.shape[1]} features"
        )
    if query.device != bank.device:
        raise ValueError(f"query is on {query.device}, bank on {bank.device}: move one of them")
    means = _finite_mean(query, "query"), _finite_mean(bank, "bank")
    return {"none": (None, None), "own": means, "bank": (means[1], means[1])}[center]


def unit_rows(rows: Tensor, mean: Tensor | None) -> Tensor:
    """Return a float32 copy of rows [n, C], minus `mean`, each of norm 1 (rows of norm below 1e-12: nearly 0)."""
    rows = rows.float() - mean if mean is not None else rows.to(torch.float32, copy=True)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))


def _finite_mean(rows: Tensor, name: str) -> Tensor:
    """Mean over rows, summed in float64 (a constant column has exactly its value as mean); checks for NaN on the way."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for first in range(0, len(rows), QUERY_ROWS):
        total += rows[first : first + QUERY_ROWS].double().sum(dim=0)
    if not total.isfinite().all():
        bad = [row for row in range(len(rows)) if not rows[row].isfinite().all()]
        raise ValueError(f"{name} row {bad[0]} is not finite ({len(bad)} such rows): leave these videos out")
    return (total / len(rows)).float()


def _bank_blocks(bank: Tensor, mean: Tensor | None, bank_rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first, skip, unit rows) of blocks of one size; the first `skip` rows were in the block before."""
    size = -(-len(bank) // -(-len(bank) // bank_rows))  # the bank in as few blocks as needed, all alike
    for first in range(0, len(bank), size):
        start = min(first, len(bank) - size)
        yield start, first - start, unit_rows(bank[start : start + size], mean)


def _search_torch(query: Tensor, bank: Tensor, k: int, skip: int, query_rows: int) -> tuple[Tensor, Tensor]:
    parts = [_top(block @ bank.T, k, skip) for block in query.split(query_rows)]
    return torch.cat([similarity for similarity, _ in parts]), torch.cat([index for _, index in parts])


def _search_faiss(query: Tensor, bank: Tensor, k: int, skip: int, query_rows: int) -> tuple[Tensor, Tensor]:
    """As `_search_torch`; faiss.knn is the search of IndexFlatIP without its copy of the bank."""
    import faiss

    wanted = min(k + 1, len(bank) - skip)
    similarity, index = (
        torch.from_numpy(found)
        for found in faiss.knn(query.numpy(), bank[skip:].numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
    )
    index += skip
    tied = similarity[:, k - 1] == similarity[:, k] if wanted > k else torch.zeros(len(query), dtype=torch.bool)
    similarity, index = _ordered(similarity[:, :k], index[:, :k])
    for rows in tied.nonzero()[:, 0].split(query_rows):
        similarity[rows], index[rows] = _top(query[rows] @ bank.T, k, skip)
    return similarity, index


def _top(similarity: Tensor, k: int, skip: int) -> tuple[Tensor, Tensor]:
    """Values and columns [q, min(k, n - skip)] of the largest entries from column `skip` on; ties: the lower column."""
    similarity = similarity[:, skip:]
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else None
    values, columns = _ordered(values[:, :k], columns[:, :k])
    if tied is not None and tied.any():
        best = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = best.values[:, :k], best.indices[:, :k]
    return values, columns + skip


def _ordered(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _merge(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Best k of two lists sorted by `_ordered`; every index of the left one is below every index of the right one."""
    values, order = torch.cat([left[0], right[0]], dim=1).sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), torch.cat([left[1], right[1]], dim=1).gather(1, order[:, :k])
