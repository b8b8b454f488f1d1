"""Metrics against brute force in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sce_video.metrics import knn_accuracy, recall_at_k, topk_accuracy


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(37, 8, generator=g) + 2,
        torch.randint(5, (37,), generator=g),
        torch.randn(91, 8, generator=g) + 2,
        torch.randint(5, (91,), generator=g),
    )


def brute_force_similarity(query: torch.Tensor, bank: torch.Tensor, center: bool) -> np.ndarray:
    q, b = query.numpy().astype(np.float64), bank.numpy().astype(np.float64)
    if center:
        q, b = q - q.mean(0), b - b.mean(0)
    q, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, b))
    return q @ b.T


@pytest.mark.parametrize("center", [True, False])
def test_recall_equals_brute_force(center: bool) -> None:
    query, query_labels, bank, bank_labels = data()
    order = np.argsort(-brute_force_similarity(query, bank, center), axis=1)
    result = recall_at_k(query, query_labels, bank, bank_labels, ks=(1, 5, 10, 200), center=center)
    for k, value in result.items():
        hits = (bank_labels.numpy()[order[:, :k]] == query_labels.numpy()[:, None]).any(1)
        assert value == pytest.approx(hits.mean())


def test_centring_changes_the_answer() -> None:
    query, query_labels, bank, bank_labels = data()
    centred, plain = (
        recall_at_k(query, query_labels, bank, bank_labels, ks=(1,), center=center) for center in (True, False)
    )
    assert centred != plain


def test_knn_equals_brute_force() -> None:
    query, query_labels, bank, bank_labels = data()
    similarity = brute_force_similarity(query, bank, center=False)
    correct = 0
    for row, label in zip(similarity, query_labels.tolist(), strict=True):
        votes = np.zeros(5)
        for i in np.argsort(-row)[:7]:
            votes[bank_labels[i]] += np.exp(row[i] / 0.07)
        correct += int(votes.argmax() == label)
    assert knn_accuracy(query, query_labels, bank, bank_labels, k=7) == pytest.approx(correct / len(query))


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recall_at_k(*data())
    monkeypatch.setattr("sce_video.search.BANK_ROWS", 5)
    assert recall_at_k(*data()) == whole


def test_topk_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.0, 0.4, 0.6]])
    assert topk_accuracy(scores, torch.tensor([1, 1, 0]), ks=(1, 2, 5)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 5: 1.0})


def test_empty_sets_are_refused() -> None:
    query, query_labels, bank, bank_labels = data()
    with pytest.raises(ValueError, match="got 37 and 0 rows"):
        recall_at_k(query, query_labels, bank[:0], bank_labels[:0])
