"""Mixtures: several lists with weights, `data.train=[a.csv:2,b.csv:1]`, in an order that depends on (seed, epoch) only.

An epoch has as many rows as all lists together; each list has its weight's share of them, to the row. A list's rows come in
permutations, one pass after another through all epochs, so that all are drawn equally often. Clips are keyed by (pass, row): a
row that an epoch draws twice gives other clips each time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import InputError
from ..randomness import generator


class Source(NamedTuple):
    """A list of a mixture: rows [first, first + rows) of all; `taken` of them, with repeats, are in an epoch."""

    name: str
    weight: float
    first: int
    rows: int
    taken: int


def parse(text: str) -> list[tuple[str, float]]:
    """Return the lists and weights of `[a.csv:2,b.csv:1]`; other text is one list. Raises InputError for a wrong weight."""
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return [(text, 1.0)]
    found: dict[str, float] = {}
    for item in (part.strip() for part in text[1:-1].split(",")):
        name, _, written = item.rpartition(":")
        try:
            weight = float(written)
        except ValueError:
            weight = math.nan
        if (
            not name or Path(item).exists() or (math.isnan(weight) and "/" in written.replace("\\", "/"))
        ):  # C:\a.csv has no weight
            name, weight = item, 1.0
        if not 0 < weight < math.inf:
            raise InputError(f"data.train: the weight {written!r} of {name} must be a number above 0")
        if not name or name in found:
            raise InputError(
                f"data.train={text}: {'a list is named twice' if name else 'a list has no name'}: write [a.csv:2,b.csv:1]"
            )
        found[name] = weight
    return list(found.items())


def share(weights: Sequence[tuple[str, float]], rows: Sequence[int]) -> tuple[Source, ...]:
    """Return the lists with their shares of an epoch; () for a single list, whose order is `loader.epoch_order`."""
    if len(weights) < 2:
        return ()
    exact = [sum(rows) * weight / sum(weight for _, weight in weights) for _, weight in weights]
    counts = [int(part) for part in exact]
    for number in sorted(range(len(rows)), key=lambda number: counts[number] - exact[number])[: sum(rows) - sum(counts)]:
        counts[number] += 1
    firsts = [sum(rows[:number]) for number in range(len(rows))]
    return tuple(Source(*pair, *part) for pair, *part in zip(weights, firsts, rows, counts, strict=True))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, sources: tuple[Source, ...]) -> list[tuple[int, int]]:
    """Return the (pass, row) keys of an epoch."""
    keys = []
    for number, source in enumerate(sources):
        begin, end = epoch * source.taken, (epoch + 1) * source.taken  # in the sequence of all passes
        for turn in range(begin // source.rows, math.ceil(end / source.rows)):
            order = torch.randperm(source.rows, generator=generator(seed, "order", number, turn)).tolist()
            part = slice(max(begin - turn * source.rows, 0), end - turn * source.rows)
            keys += [(turn, source.first + row) for row in order[part]]
    order = torch.randperm(len(keys), generator=generator(seed, "mixture", epoch)).tolist()
    return [keys[position] for position in order]


def describe(sources: Sequence[Source]) -> list[str]:
    """Return a line for each list: its rows, and how many of an epoch's are of it."""
    total = sum(source.taken for source in sources)
    return [f"{one.name}: {one.rows} rows, weight {one.weight:g}: {one.taken} of an epoch's {total}" for one in sources]


def describe_epoch(seed: int, sources: tuple[Source, ...], taken: int, epoch: int) -> str:
    """Return how many of the first `taken` rows of an epoch, those that it trains on, are of each list."""
    firsts = [source.first for source in sources]
    counts = Counter(bisect_right(firsts, row) - 1 for _, row in epoch_order(seed, epoch, sources)[:taken])
    return f"epoch {epoch + 1}: " + ", ".join(f"{counts[number]} rows of {one.name}" for number, one in enumerate(sources))
