"""Exact nearest neighbours by cosine similarity, in bounded memory: block-wise products and a running top k.

Blocks of the bank are centred, normalised and multiplied with the queries, so that no centred copy of the bank is made.
Of equal similarities the lower bank row comes first. `topk` and faiss promise nothing about ties: one neighbour more than
asked for is taken, and where it ties with the last, the row is sorted again by a stable sort. A product may give equal rows
another last bit in another block: rows that are equal once centred and normalised (by a 64-bit hash) are searched once.

Shape legend: Q queries, N bank rows, U distinct ones, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Center = Literal["none", "own", "bank"]
Engine = Literal["auto", "torch", "faiss"]
BANK_ROWS, QUERY_ROWS = 8192, 1024  # rows multiplied at once: 64 MiB of the bank at C = 2,048, 32 MiB of similarities
SIMILARITIES = 2**28  # most similarities that `similarity_rows` holds at once: 1 GiB
FAISS_FROM = 5_000  # engine "auto" takes faiss, where it is installed, for banks of at least so many rows on a CPU


class Neighbors(NamedTuple):
    """The k nearest bank rows of each query: similarity float32 [Q, k], best first; rows int64 [Q, k]; and the engine."""

    similarity: Tensor
    rows: Tensor
    engine: str


@torch.no_grad()
def nearest(
    query: Tensor, bank: Tensor, k: int, *, center: Center = "none", engine: Engine = "auto",
    query_rows: int = QUERY_ROWS, bank_rows: int = BANK_ROWS,
) -> Neighbors:  # fmt: skip
    """Return the min(k, N) bank rows with the largest cosine similarity to each query [Q, C] from bank [N, C].

    The arithmetic is float32. `center` subtracts before normalising: "own" each set's own mean (SCE's retrieval protocol),
    "bank" the bank's mean from both. A row of zeros has similarity 0 to everything. `query_rows` and `bank_rows` bound the
    memory. Raises ValueError for empty, mismatched or non-finite input, and for an engine that is not available.
    """
    if k < 1 or query_rows < 1 or bank_rows < 1:
        raise ValueError(f"k and block sizes must be at least 1, got k={k}, {query_rows} and {bank_rows} rows")
    engine = choose_engine(engine, bank)
    query, mean = _prepare(query, bank, center)
    first, which = _distinct(bank, mean)
    best = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start, block in _unit_blocks(bank, mean, first, bank_rows):
        values, rows = _search(query, block, k, query_rows, use_faiss=engine == "faiss")
        best = _sort(torch.cat([best[0], values], dim=1), torch.cat([best[1], rows + start], dim=1), k)
    return Neighbors(*_with_copies(*best, which, min(k, len(bank))), engine)


@torch.no_grad()
def similarity_rows(
    query: Tensor, bank: Tensor, *, center: Center = "none", query_rows: int | None = None, bank_rows: int = BANK_ROWS
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first, similarity float32 [q, N]) of queries [first, first + q), block after block. Arguments as in `nearest`."""
    query, mean = _prepare(query, bank, center)
    first, which = _distinct(bank, mean)
    size = query_rows or max(1, SIMILARITIES // len(bank))
    for start in range(0, len(query), size):
        part = query[start : start + size]
        parts = [part @ block.T for _, block in _unit_blocks(bank, mean, first, bank_rows)]
        yield start, torch.cat(parts, dim=1)[:, which] if len(first) < len(bank) else torch.cat(parts, dim=1)


def choose_engine(engine: Engine, bank: Tensor) -> Literal["torch", "faiss"]:
    """Return the library that searches: "auto" is faiss for FAISS_FROM rows or more on a CPU if it is installed."""
    installed, on_cpu = find_spec("faiss") is not None, bank.device.type == "cpu"
    if engine == "auto":
        return "faiss" if installed and on_cpu and len(bank) >= FAISS_FROM else "torch"
    if engine not in ("torch", "faiss"):
        raise ValueError(f"engine={engine!r} is not known: auto, torch or faiss")
    if engine == "faiss" and not on_cpu:
        raise ValueError(f"engine='faiss' searches on the CPU, the bank is on {bank.device}: use engine='torch'")
    if engine == "faiss" and not installed:
        raise ValueError("engine='faiss' needs faiss: pip install 'sce_video[search]', or use engine='torch'")
    return engine


def unit_rows(rows: Tensor, mean: Tensor | None) -> Tensor:
    """Return a float32 copy of rows [n, C], minus `mean`, each of norm 1 (rows of norm below 1e-12: nearly 0)."""
    rows = rows.float() - mean if mean is not None else rows.to(torch.float32, copy=True)
    rows = rows.contiguous()
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))


def _prepare(query: Tensor, bank: Tensor, center: Center) -> tuple[Tensor, Tensor | None]:
    """Check both sets; return the queries as unit rows and the mean to subtract from the bank."""
    if center not in ("none", "own", "bank"):
        raise ValueError(f"center={center!r} is not known: none, own or bank")
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1]:
        raise ValueError(f"query [Q, C] and bank [N, C] must share C, got {list(query.shape)} and {list(bank.shape)}")
    if not len(query) or not len(bank) or not bank.shape[1]:
        raise ValueError(f"a search needs queries and a bank, got {len(query)} and {len(bank)} rows of {bank.shape[1]} features")
    if query.device != bank.device:
        raise ValueError(f"query is on {query.device}, bank on {bank.device}: move one of them")
    own, mean = _finite_mean(query, "query"), _finite_mean(bank, "bank")
    return unit_rows(query, {"none": None, "own": own, "bank": mean}[center]), None if center == "none" else mean


def _finite_mean(rows: Tensor, name: str) -> Tensor:
    """Return the mean over rows, summed in float64: a constant column has exactly its value as mean."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(QUERY_ROWS):
        total += part.double().sum(dim=0)
    if not total.isfinite().all():
        bad = [row for row in range(len(rows)) if not rows[row].isfinite().all()]
        raise ValueError(f"{name} row {bad[0]} is not finite ({len(bad)} such rows): leave these videos out")
    return (total / len(rows)).float()


def _distinct(bank: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the lowest row of each set of equal unit rows, int64 [U] ascending, and the set of each row, int64 [N]."""
    weights = torch.randint(-(2**62), 2**62, bank.shape[1:], generator=torch.Generator().manual_seed(0)).to(bank.device)
    hashes = torch.empty(len(bank), dtype=torch.int64, device=bank.device)
    for part, result in zip(bank.split(QUERY_ROWS), hashes.split(QUERY_ROWS), strict=True):
        bits = (unit_rows(part, mean) + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the 0.0 that it equals
        torch.sum(bits * weights, dim=1, out=result)
    sets, which = hashes.unique(return_inverse=True)
    rows = torch.arange(len(bank), device=bank.device)
    first, order = rows.new_full((len(sets),), len(bank)).scatter_reduce_(0, which, rows, "amin").sort()
    return first, torch.empty_like(order).scatter_(0, order, rows[: len(order)])[which]


def _unit_blocks(bank: Tensor, mean: Tensor | None, first: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(first), size):
        chosen = first[start : start + size] if len(first) < len(bank) else slice(start, start + size)
        yield start, unit_rows(bank[chosen], mean)


def _search(query: Tensor, block: Tensor, k: int, query_rows: int, *, use_faiss: bool) -> tuple[Tensor, Tensor]:
    """Return the top k of one block."""
    wanted, values, rows = min(k + 1, len(block)), [], []
    for part in query.split(query_rows):
        if use_faiss:
            import faiss

            found = faiss.knn(part.numpy(), block.numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
            top, columns = map(torch.from_numpy, found)
        else:
            similarity = part @ block.T
            top, columns = similarity.topk(wanted, dim=1)
        tied = (top[:, k - 1 : k] == top[:, k : k + 1]).any(dim=1)  # chance has chosen among equal ones
        top, columns = _sort(top, columns, k)
        if tied.any():
            again = part[tied] @ block.T if use_faiss else similarity[tied]
            best = again.sort(dim=1, descending=True, stable=True)
            top[tied], columns[tied] = best.values[:, :k], best.indices[:, :k]
        values.append(top)
        rows.append(columns)
    return torch.cat(values), torch.cat(rows)


def _sort(values: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k by falling value, then rising row."""
    rows, order = rows.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), rows.gather(1, order)[:, :k]


def _with_copies(values: Tensor, sets: Tensor, which: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Replace each set by all its rows: sets [Q, min(k, U)] -> rows [Q, k]."""
    none, counts, order = len(which), which.bincount(), which.sort(stable=True).indices
    step = torch.arange(min(k, int(counts.max())), device=which.device)
    members = order[((counts.cumsum(dim=0) - counts)[:, None] + step).clamp_max_(none - 1)]  # [U, most rows of a set]
    members.masked_fill_(step >= counts[:, None], none)
    found = []
    for value, chosen in zip(*(x.split(max(1, 2**22 // (k * len(step)))) for x in (values, sets)), strict=True):
        rows = members[chosen]
        expanded = value[:, :, None].expand(rows.shape).masked_fill(rows == none, -torch.inf)
        found.append(_sort(expanded.flatten(1), rows.flatten(1), k))
    return torch.cat([part for part, _ in found]), torch.cat([rows for _, rows in found])
