"""Search against float64 brute force in NumPy: ties, duplicates, blocks, engines, degenerate and refused input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sce_video.evaluation import search
from sce_video.evaluation.search import nearest, similarity_rows

ENGINES = ("torch", "faiss")


def features(rows: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 2


def slow_similarity(query: Tensor, bank: Tensor, center: str = "none") -> np.ndarray:
    """One pair at a time, float64. Equal bank rows get equal values, since each pair is computed alike."""
    queries, rows = query.double().numpy(), bank.double().numpy()
    query_mean, bank_mean = queries.mean(axis=0), rows.mean(axis=0)
    if center != "none":
        queries, rows = queries - (query_mean if center == "own" else bank_mean), rows - bank_mean
    result = np.zeros((len(queries), len(rows)))
    for i, a in enumerate(queries):
        for j, b in enumerate(rows):
            norms = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
            result[i, j] = np.sum(a * b) / norms if norms > 1e-12 else 0.0
    return result


def slow_nearest(similarity: np.ndarray, k: int) -> np.ndarray:
    """Python's sort of (-similarity, row): of equal ones the lower row first."""
    ordered = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in similarity]  # type: ignore[misc]
    return np.array(ordered)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("center", ["none", "own", "bank"])
@pytest.mark.parametrize("width", [2, 8])
def test_equals_brute_force(engine: search.Engine, center: search.Center, width: int) -> None:
    query, bank = features(13, width), features(57, width, seed=1)
    expected = slow_similarity(query, bank, center)
    found = nearest(query, bank, 9, center=center, engine=engine, bank_rows=10, query_rows=4)
    assert found.engine == engine
    assert found.similarity.dtype == torch.float32
    assert found.rows.dtype == torch.int64
    assert np.array_equal(found.rows.numpy(), slow_nearest(expected, 9))
    np.testing.assert_allclose(found.similarity, np.take_along_axis(expected, found.rows.numpy(), 1), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("width", "queries"), [(8, 1), (33, 7), (512, 40)])
def test_of_equal_rows_the_lower_comes_first_whatever_the_blocks(engine: search.Engine, width: int, queries: int) -> None:
    g = torch.Generator().manual_seed(width)
    copied = torch.randint(30, (203,), generator=g)
    bank, query = torch.randn(30, width, generator=g)[copied], torch.randn(queries, width, generator=g)
    expected = slow_nearest(slow_similarity(query, bank), 20)
    for bank_rows in (1, 7, 64, 1000):
        for query_rows in (1, 5, 1000):
            found = nearest(query, bank, 20, engine=engine, bank_rows=bank_rows, query_rows=query_rows)
            assert np.array_equal(found.rows.numpy(), expected), (bank_rows, query_rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_of_different_rows_go_to_the_lower_one(engine: search.Engine) -> None:
    # One feature not zero in the query: similarities are exactly 0.6, 0.8, -0.6 and -0.8, each of two different rows.
    rows = torch.tensor([[3.0, 4.0, 0.0], [3.0, 0.0, 4.0], [4.0, 3.0, 0.0], [4.0, 0.0, 3.0]])
    bank = torch.cat([rows, -rows])[torch.randperm(8, generator=torch.Generator().manual_seed(3))].repeat(25, 1)
    query = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    exact = torch.where(bank[:, 0].abs() == 3, 0.6, 0.8) * bank[:, 0].sign()
    for k in (1, 3, 51, 60, 200):
        expected = slow_nearest(np.stack([exact.numpy(), -exact.numpy()]), k)
        for bank_rows in (1, 3, 1000):
            found = nearest(query, bank, k, engine=engine, bank_rows=bank_rows)
            assert np.array_equal(found.rows.numpy(), expected), (k, bank_rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_beyond_the_last_place_are_not_left_to_chance(engine: search.Engine) -> None:
    """300 different rows that all have similarity exactly 0: only the query's own feature is empty in them."""
    bank = torch.cat([torch.zeros(300, 1), features(300, 4)], dim=1)
    query = torch.tensor([[1.0, 0, 0, 0, 0]])
    assert len(bank.unique(dim=0)) == 300
    for k in (1, 10, 299):
        found = nearest(query, bank, k, engine=engine, bank_rows=128)
        assert found.rows[0].tolist() == list(range(k))
        assert not found.similarity.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_constant_features_are_zero_after_centring_and_keep_the_banks_order(engine: search.Engine) -> None:
    found = nearest(features(5), torch.full((40, 8), 0.1), 7, center="own", engine=engine)
    assert not found.similarity.any()
    assert torch.equal(found.rows, torch.arange(7).expand(5, 7))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_feature_has_two_directions(engine: search.Engine) -> None:
    query, bank = torch.tensor([[3.0], [-0.1]]), torch.tensor([[-1.0], [5.0], [0.3], [-7.0], [0.0]])
    found = nearest(query, bank, 5, engine=engine)
    assert found.rows.tolist() == [[1, 2, 4, 0, 3], [0, 3, 4, 1, 2]]
    assert found.similarity.tolist() == [[1, 1, 0, -1, -1], [1, 1, 0, -1, -1]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("center", ["none", "own", "bank"])
def test_bank_of_one_and_k_above_the_bank(engine: search.Engine, center: search.Center) -> None:
    found = nearest(features(3), features(1, seed=1), 50, center=center, engine=engine)
    assert found.rows.tolist() == [[0], [0], [0]]
    query, bank = features(3), features(6, seed=1)
    found = nearest(query, bank, 50, center=center, engine=engine, bank_rows=4)
    assert np.array_equal(found.rows.numpy(), slow_nearest(slow_similarity(query, bank, center), 6))


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
def test_rows_that_differ_in_one_feature_only_stay_apart(width: int) -> None:
    bank = features(1, width).repeat(width + 5, 1)
    bank[range(width), range(width)] += 0.01
    first, which = search._distinct(bank, None)
    unit = search.unit_rows(bank, None).numpy()
    firsts = sorted(np.unique(unit, axis=0, return_index=True)[1].tolist())
    assert first.tolist() == firsts
    assert np.array_equal(unit[firsts][which], unit)


def test_negative_zero_equals_zero() -> None:
    bank = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]])
    assert nearest(torch.tensor([[1.0, 1.0]]), bank, 3).rows.tolist() == [[0, 1, 2]]
    assert search._distinct(bank, None)[0].tolist() == [0]


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("center", ["none", "own", "bank"])
def test_similarity_rows_equal_brute_force(center: search.Center, copies: bool) -> None:
    query, bank = features(11), features(23, seed=1)
    bank = torch.cat([bank, bank[5:9]]) if copies else bank
    expected = slow_similarity(query, bank, center)
    for query_rows, bank_rows in ((1, 1), (4, 7), (None, 1000)):
        blocks = [
            (first, block.clone())
            for first, block in similarity_rows(query, bank, center=center, query_rows=query_rows, bank_rows=bank_rows)
        ]
        assert [first for first, _ in blocks] == list(range(0, 11, query_rows or 11))
        np.testing.assert_allclose(torch.cat([block for _, block in blocks]), expected, atol=1e-6)
        if copies:
            assert all(torch.equal(block[:, 5:9], block[:, 23:]) for _, block in blocks)


def test_the_bank_is_left_as_it_is_and_may_be_of_another_type_or_layout() -> None:
    query, bank = features(5), features(20, seed=1)
    before = bank.clone()
    plain = nearest(query, bank, 5, center="own")
    assert torch.equal(bank, before)
    for other in (bank.double(), bank.T.contiguous().T, bank.repeat_interleave(2, dim=0)[::2]):
        assert torch.equal(nearest(query, other, 5, center="own", engine="faiss").rows, plain.rows)
    assert not nearest(query.requires_grad_(), bank, 5).similarity.requires_grad


def test_auto_takes_faiss_for_a_large_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank = features(3), features(40, seed=1)
    assert nearest(query, bank, 3).engine == "torch"
    monkeypatch.setattr(search, "FAISS_FROM", 40)
    assert nearest(query, bank, 3).engine == "faiss"
    assert nearest(query, bank[:-1], 3).engine == "torch"


def test_without_faiss_torch_searches_and_asking_for_faiss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank = features(3), features(40, seed=1)
    monkeypatch.setattr(search, "FAISS_FROM", 1)
    monkeypatch.setattr(search, "find_spec", lambda _: None)
    assert nearest(query, bank, 3).engine == "torch"
    with pytest.raises(ValueError, match=r"pip install 'sce_video\[search\]'"):
        nearest(query, bank, 3, engine="faiss")


def test_importing_does_not_load_faiss_or_scikit_learn() -> None:
    script = "import sys; from sce_video.evaluation import low_shot, metrics; " + (
        "sys.exit(bool({'faiss', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("side", ["query", "bank"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(side: str, value: float) -> None:
    sets = {"query": features(6), "bank": features(9, seed=1)}
    sets[side][4, 2] = value
    with pytest.raises(ValueError, match=rf"{side} row 4 is not finite \(1 such rows\)"):
        nearest(sets["query"], sets["bank"], 3)
    with pytest.raises(ValueError, match=f"{side} row 4 is not finite"):
        next(similarity_rows(sets["query"], sets["bank"]))


def test_bad_arguments_are_refused() -> None:
    query, bank = features(3), features(5)
    for bad, message in (
        ((query[0], bank, 1), r"must share C, got \[8\] and \[5, 8\]"),
        ((query[:, :4], bank, 1), r"got \[3, 4\] and \[5, 8\]"),
        ((query[:0], bank, 1), "got 0 and 5 rows"),
        ((query, bank[:0], 1), "got 3 and 0 rows"),
        ((query[:, :0], bank[:, :0], 1), "of 0 features"),
        ((query, bank, 0), "k=0"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest(*bad)
    with pytest.raises(ValueError, match="engine='annoy' is not known"):
        nearest(query, bank, 1, engine="annoy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="center=True is not known"):
        nearest(query, bank, 1, center=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 and 0 rows|0 rows"):
        nearest(query, bank, 1, bank_rows=0)
    with pytest.raises(ValueError, match="query is on cpu, bank on meta"):
        nearest(query, bank.to("meta"), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same() -> None:
    query, bank = features(50, 64), features(300, 64, seed=1)
    bank = torch.cat([bank, bank[:100]])
    here = nearest(query, bank, 20, center="own")
    there = nearest(query.cuda(), bank.cuda(), 20, center="own", bank_rows=64)
    assert torch.equal(there.rows.cpu(), here.rows)
    assert torch.allclose(there.similarity.cpu(), here.similarity, atol=1e-5)


MEMORY = """
import sys, torch
from pathlib import Path
from sce_video.evaluation.search import nearest
def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
bank, query = torch.randn(100_000, 256), torch.randn(500, 256)
nearest(query, bank[:9000], 5, engine=sys.argv[1])  # threads and buffers of the libraries, not of this bank
before = peak()
nearest(query, bank, 5, center="own", engine=sys.argv[1])
print(peak() - before, bank.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_does_not_grow_with_the_bank(engine: str) -> None:
    """A copy of the bank is 102 MB, all similarities 200 MB; the search may take 60 MB."""
    result = subprocess.run([sys.executable, "-c", MEMORY, engine], capture_output=True, text=True, check=True)
    more, bank_bytes = map(int, result.stdout.split())
    assert bank_bytes == 102_400_000
    assert more < 60e6
