"""Exact nearest neighbours by cosine similarity, in bounded memory.

The bank may fill a third of the memory, so no centred or normalised copy of it is ever made: blocks of BANK_ROWS rows are
centred, normalised and multiplied with the queries, and a running top k is merged over the blocks. 20,000 queries against
240,000 x 2,048 need the inputs (2.1 GB) and 1 GB more (all similarities of a query, for average precision: 2 GB more), the
interpreter with torch included.

Results are written into tensors made before a loop, never collected in a list: small tensors that stay between large ones
that go keep the C library from using the freed memory again (measured: 3.9 GB).

Ties: of equal similarities the lower bank row comes first. Two things stand in the way. torch.topk and faiss promise
nothing about ties: one neighbour more than asked for is taken, and where it ties with the last, the row is sorted again by
a stable sort. And a matrix product may give the same row another last bit at another place: rows that are equal once
centred and normalised are found beforehand, by a hash and a comparison, and searched once. Similarities of *different*
rows that differ by float32 rounding only may still change places with the block sizes, the engine or the machine.

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

BANK_ROWS = 8192  # bank rows centred and normalised at once: 64 MiB at C = 2,048
QUERY_ROWS = 1024  # queries multiplied with them at once: 32 MiB of similarities
SIMILARITIES = 2**28  # most similarities that `similarity_rows` holds at once: 1 GiB
HASHED_COLUMNS = 64  # features compared at first when looking for equal rows
FAISS_FROM = 5_000  # engine "auto" takes faiss, where it is installed, for banks of at least so many rows on a CPU


class Neighbors(NamedTuple):
    """The k nearest bank rows of each query: similarity float32 [Q, k] in [-1, 1], best first; rows int64 [Q, k].

    `engine` says what searched: "torch" or "faiss".
    """

    similarity: Tensor
    rows: Tensor
    engine: str


class Prepared(NamedTuple):
    """The queries as unit rows [Q, C]; the bank as given, the mean to subtract (None: nothing), and its distinct rows.

    first int64 [U]: the lowest of each set of equal rows, ascending; which int64 [N] in [0, U): the set of each row. Both
    None if all rows differ.
    """

    query: Tensor
    bank: Tensor
    mean: Tensor | None
    first: Tensor | None
    which: Tensor | None

    def blocks(self, bank_rows: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (position of its first row among the distinct ones, unit rows of a block)."""
        total = len(self.bank if self.first is None else self.first)
        size = -(-total // -(-total // bank_rows))  # as few blocks as needed, all about alike
        for start in range(0, total, size):
            chosen = slice(start, start + size) if self.first is None else self.first[start : start + size]
            yield start, unit_rows(self.bank[chosen], self.mean)


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
    """Return the min(k, N) bank rows with the largest cosine similarity to each query; of equal ones the lower row first.

    query [Q, C], bank [N, C] floating point on one device; the arithmetic is float32, with whatever precision torch's
    matrix product is set to there. `center` subtracts before normalising: "own" each set's own mean (SCE's retrieval
    protocol), "bank" the bank's mean from both (for few queries: one query is its own mean). A row of zeros has
    similarity 0 to everything. `query_rows` and `bank_rows` bound the memory. ValueError for empty, mismatched or
    non-finite input, and for an engine that cannot be had.
    """
    if k < 1 or query_rows < 1 or bank_rows < 1:
        raise ValueError(f"k and block sizes must be at least 1, got k={k}, {query_rows} and {bank_rows} rows")
    chosen = choose_engine(engine, bank)
    prepared = prepare(query, bank, center)
    best: tuple[Tensor, Tensor] | None = None
    for first, block in prepared.blocks(bank_rows):
        found = (_search_faiss if chosen == "faiss" else _search_torch)(prepared.query, block, k, query_rows)
        found[1].add_(first)
        best = found if best is None else _merge(best, found, k)
    assert best is not None
    if prepared.which is not None:
        best = _with_copies(*best, prepared.which, min(k, len(bank)))
    return Neighbors(*best, chosen)


@torch.no_grad()
def similarity_rows(
    query: Tensor, bank: Tensor, *, center: Center = "none", query_rows: int | None = None, bank_rows: int = BANK_ROWS
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first, similarity float32 [q, N]): all similarities of queries [first, first + q), block after block.

    Arguments and errors as in `nearest`; equal bank rows have equal similarities. A block has at most SIMILARITIES
    entries (one query at least) unless `query_rows` is given, and is overwritten by the next one.
    """
    prepared = prepare(query, bank, center)
    size = query_rows or max(1, SIMILARITIES // len(bank))
    distinct = len(bank if prepared.first is None else prepared.first)
    held = torch.empty(min(size, len(query)), distinct, device=bank.device)
    for first_query in range(0, len(query), size):
        parts = prepared.query[first_query : first_query + size].split(QUERY_ROWS)
        for first, block in prepared.blocks(bank_rows):
            for number, part in enumerate(parts):
                held[number * QUERY_ROWS :][: len(part), first : first + len(block)] = part @ block.T
        similarity = held[: sum(map(len, parts))]
        yield first_query, similarity if prepared.which is None else similarity[:, prepared.which]


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


def prepare(query: Tensor, bank: Tensor, center: Center) -> Prepared:
    """Check both sets, normalise the queries and find equal bank rows. Arguments and errors as in `nearest`."""
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
    own_mean, bank_mean = _finite_mean(query, "query"), _finite_mean(bank, "bank")
    mean = None if center == "none" else bank_mean
    first, which = _distinct(bank, mean)
    return Prepared(unit_rows(query, own_mean if center == "own" else mean), bank, mean, first, which)


def unit_rows(rows: Tensor, mean: Tensor | None) -> Tensor:
    """Return a float32 copy of rows [n, C], minus `mean`, each of norm 1 (rows of norm below 1e-12: nearly 0)."""
    rows = rows.contiguous()
    rows = rows.float() - mean if mean is not None else rows.to(torch.float32, copy=True)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12))


def _finite_mean(rows: Tensor, name: str) -> Tensor:
    """Mean over rows, summed in float64 (a constant column has exactly its value as mean); checks for NaN on the way."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(QUERY_ROWS):
        total += part.double().sum(dim=0)
    if not total.isfinite().all():
        bad = [row for row in range(len(rows)) if not rows[row].isfinite().all()]
        raise ValueError(f"{name} row {bad[0]} is not finite ({len(bad)} such rows): leave these videos out")
    return (total / len(rows)).float()


def _distinct(bank: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """`first` and `which` of `Prepared`. Rows that share a hash of a few columns, then of all, are compared."""
    own = torch.arange(len(bank), device=bank.device)
    rows, few = own, -(-bank.shape[1] // HASHED_COLUMNS)
    for step in sorted({few, 1}, reverse=True):
        hashes = _hashes(bank, mean, rows, step)
        _, group, counts = hashes.unique(return_inverse=True, return_counts=True)
        shared = counts[group] > 1
        rows, hashes = rows[shared], hashes[shared]
        if not len(rows):
            return None, None
    ascending, order = hashes.sort(stable=True)
    starts = torch.cat([ascending.new_ones(1, dtype=torch.bool), ascending[1:] != ascending[:-1]])
    lowest = own.clone()
    lowest[rows[order]] = rows[order][starts][starts.cumsum(dim=0) - 1]
    for rows in (lowest != own).nonzero()[:, 0].split(QUERY_ROWS):
        differ = rows[(unit_rows(bank[rows], mean) != unit_rows(bank[lowest[rows]], mean)).any(dim=1)]
        lowest[differ] = differ
    first = (lowest == own).nonzero()[:, 0]
    return first, torch.searchsorted(first, lowest)


def _hashes(bank: Tensor, mean: Tensor | None, rows: Tensor, step: int) -> Tensor:
    """Hash modulo 2^64 int64 of the bits of every `step`-th feature of these rows, centred and normalised."""
    hashes = torch.empty_like(rows)
    weights = torch.randint(-(2**62), 2**62, (bank[:1, ::step].numel(),), generator=torch.Generator().manual_seed(0))
    weights = weights.to(bank.device)
    for part, result in zip(rows.split(QUERY_ROWS), hashes.split(QUERY_ROWS), strict=True):
        unit = unit_rows(bank[part], mean)[:, ::step] + 0.0  # makes -0.0 the 0.0 that it equals
        torch.sum(unit.contiguous().view(torch.int32) * weights, dim=1, out=result)
    return hashes


def _with_copies(similarity: Tensor, sets: Tensor, which: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Put the rows of each set in its place: sets [Q, min(k, U)] -> rows [Q, k], ordered as `nearest` promises."""
    counts = torch.bincount(which)
    step = torch.arange(min(k, int(counts.max())), device=which.device)
    places = (counts.cumsum(dim=0) - counts)[:, None] + step
    none = len(which)
    members = which.sort(stable=True).indices[places.clamp_max_(none - 1)]
    members.masked_fill_(step >= counts[:, None], none)  # [U, most rows of a set, at most k]
    result = similarity.new_empty(len(sets), k), sets.new_empty(len(sets), k)
    at_once = max(1, 2**22 // (sets.shape[1] * len(step)))
    for start in range(0, len(sets), at_once):
        part = slice(start, start + at_once)
        rows = members[sets[part]]
        values = similarity[part, :, None].expand(rows.shape).masked_fill(rows == none, -torch.inf)
        values, rows = _ordered(values.flatten(1), rows.flatten(1))
        result[0][part], result[1][part] = values[:, :k], rows[:, :k]
    return result


def _search_torch(query: Tensor, bank: Tensor, k: int, query_rows: int) -> tuple[Tensor, Tensor]:
    similarity = query.new_empty(len(query), min(k, len(bank)))
    rows = torch.empty_like(similarity, dtype=torch.int64)
    for start in range(0, len(query), query_rows):
        part = slice(start, start + query_rows)
        similarity[part], rows[part] = _top(query[part] @ bank.T, k)
    return similarity, rows


def _search_faiss(query: Tensor, bank: Tensor, k: int, query_rows: int) -> tuple[Tensor, Tensor]:
    """As `_search_torch`. faiss.knn is the search of IndexFlatIP without its copy of the bank."""
    import faiss

    wanted = min(k + 1, len(bank))
    values, columns = faiss.knn(query.numpy(), bank.numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
    similarity, rows, tied = _first_k(torch.from_numpy(values), torch.from_numpy(columns), k)
    for unsure in tied.nonzero()[:, 0].split(query_rows):
        similarity[unsure], rows[unsure] = _top(query[unsure] @ bank.T, k)
    return similarity, rows


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns [q, min(k, n)] of the largest entries of each row, as `_ordered`; ties: the lower column."""
    values, columns, tied = _first_k(*similarity.topk(min(k + 1, similarity.shape[1]), dim=1), k)
    if tied.any():
        best = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = best.values[:, :k], best.indices[:, :k]
    return values, columns


def _first_k(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first k of [q, at most k + 1], and whether the choice among ties at the end was left to chance, bool [q]."""
    tied = values[:, k - 1 : k] == values[:, k : k + 1]
    return *_ordered(values[:, :k], columns[:, :k]), tied.any(dim=1)


def _ordered(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _merge(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Best k of two lists of `_top`. Rows of the left are all below those of the right, so a stable sort keeps the rule."""
    values, order = torch.cat([left[0], right[0]], dim=1).sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), torch.cat([left[1], right[1]], dim=1).gather(1, order[:, :k])
