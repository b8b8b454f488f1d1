"""Metrics against brute force in NumPy and against scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor

from sce_video.evaluation import metrics, search
from sce_video.evaluation.metrics import (
    average_views,
    confusion_matrix,
    knn_accuracy,
    knn_vote,
    per_class_accuracy,
    recall_at_k,
    relevant_ranks,
    retrieval_scores,
    topk_accuracy,
    weighted_knn,
)

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def data(seed: int = 0, width: int = 8) -> Data:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(37, width, generator=g) + 2,
        torch.randint(5, (37,), generator=g),
        torch.randn(91, width, generator=g) + 2,
        torch.randint(5, (91,), generator=g),
    )


def with_ties() -> Data:
    """Each bank row up to eight times with other labels, and queries of classes 7 and 9, which are not in the bank."""
    query, query_labels, bank, bank_labels = data(1)
    g = torch.Generator().manual_seed(1)
    query_labels[[3, 20, 30]] = torch.tensor([7, 9, 7])
    return query, query_labels, bank[torch.randint(12, (91,), generator=g)], bank_labels


def brute_force_similarity(query: Tensor, bank: Tensor, center: bool) -> np.ndarray:
    q, b = query.numpy().astype(np.float64), bank.numpy().astype(np.float64)
    if center:
        q, b = q - q.mean(0), b - b.mean(0)
    q, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, b))
    return np.array([[np.sum(x * y) for y in b] for x in q])


def slow_scores(data: Data, center: bool, ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute hits [Q, len(ks)] and average precision [Q] by walking down each query's ranking; ties by bank row."""
    query, query_labels, bank, bank_labels = data
    hits, precision = np.zeros((len(query), len(ks))), np.zeros(len(query))
    for q, row in enumerate(brute_force_similarity(query, bank, center)):
        ranking = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))  # type: ignore[misc]
        found = 0
        for rank, j in enumerate(ranking, 1):
            if bank_labels[j] == query_labels[q]:
                found += 1
                precision[q] += found / rank
                hits[q] = np.maximum(hits[q], rank <= np.array(ks))
        precision[q] /= max(found, 1)
    return hits, precision


@pytest.mark.parametrize("center", [True, False])
def test_recall_equals_brute_force(center: bool) -> None:
    query, query_labels, bank, bank_labels = data()
    order = np.argsort(-brute_force_similarity(query, bank, center), axis=1)
    result = recall_at_k(query, query_labels, bank, bank_labels, ks=(1, 5, 10, 200), center=center)
    for k, value in result.items():
        hits = (bank_labels.numpy()[order[:, :k]] == query_labels.numpy()[:, None]).any(1)
        assert value == pytest.approx(hits.mean())


@pytest.mark.parametrize("average_precision", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("data_set", [data(), data(2, width=2), with_ties()], ids=["plain", "narrow", "ties"])
def test_retrieval_scores_equal_a_walk_down_the_ranking(data_set: Data, center: bool, average_precision: bool) -> None:
    ks = (1, 2, 5, 10, 25, 50, 200)
    hits, precision = slow_scores(data_set, center, ks)
    scores = retrieval_scores(*data_set, ks=ks, center=center, average_precision=average_precision)
    labels = data_set[1].numpy()
    assert scores.recall == pytest.approx(dict(zip(ks, hits.mean(0), strict=True)))
    assert scores.class_queries == {label: (labels == label).sum() for label in np.unique(labels)}
    for label in np.unique(labels):
        expected = dict(zip(ks, hits[labels == label].mean(0), strict=True))
        assert scores.class_recall[label] == pytest.approx(expected)
    if average_precision:
        assert scores.mean_average_precision == pytest.approx(precision.mean())
        expected = {label: precision[labels == label].mean() for label in np.unique(labels)}
        assert scores.class_precision == pytest.approx(expected)
    else:
        assert scores.mean_average_precision is None
        assert scores.class_precision == {}


def test_average_precision_equals_scikit_learn_where_nothing_ties() -> None:
    query, query_labels, bank, bank_labels = data(4)
    similarity = brute_force_similarity(query, bank, True)
    expected = [
        average_precision_score((bank_labels == label).numpy(), row) for row, label in zip(similarity, query_labels, strict=True)
    ]
    assert retrieval_scores(*data(4)).mean_average_precision == pytest.approx(np.mean(expected), abs=1e-9)


def test_queries_of_absent_classes_are_misses_and_counted() -> None:
    scores = retrieval_scores(*with_ties(), ks=(1, 91))
    assert scores.absent == 3
    assert scores.class_recall[7] == scores.class_recall[9] == {1: 0.0, 91: 0.0}
    assert scores.class_precision[7] == scores.class_precision[9] == 0.0
    assert scores.recall[91] == pytest.approx(34 / 37)
    query, labels, bank, bank_labels = data()
    nothing = retrieval_scores(query, labels + 5, bank, bank_labels)
    assert nothing.absent == 37
    assert nothing.mean_average_precision == 0
    assert set(nothing.recall.values()) == {0.0}


def test_relevant_ranks_count_ties_by_row() -> None:
    g = np.random.default_rng(0)
    for values in (3, 40, 10_000):  # from nearly all tied to hardly any
        similarity = g.integers(values, size=300).astype(np.float32)
        members = np.flatnonzero(g.random(300) < 0.4)
        place = {j: rank for rank, j in enumerate(sorted(range(300), key=lambda j: (-similarity[j], j)), 1)}  # noqa: B023
        expected = sorted(place[j] for j in members.tolist())
        for few in (0, 10_000):  # by one sort of everything, and one by one
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(metrics, "FEW_TIES", few)
                assert relevant_ranks(similarity, members).tolist() == expected
    assert relevant_ranks(similarity, members[:0]).tolist() == []


def test_a_perfect_a_worst_and_a_constant_ranking() -> None:
    bank, labels = torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0], [0.1, 1.0]]), torch.tensor([0, 1, 0, 1])
    best, worst = (retrieval_scores(bank, target, bank, labels, ks=(1, 2), center=False) for target in (labels, 1 - labels))
    assert best.mean_average_precision == 1.0
    assert best.recall == {1: 1.0, 2: 1.0}
    assert worst.mean_average_precision == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert worst.recall == {1: 0.0, 2: 0.0}
    # Centred constant features are zero: everything ties, and the ranking is the order of the bank.
    constant = retrieval_scores(torch.ones(4, 2), labels, torch.ones(4, 2), labels, ks=(1, 2))
    assert constant.recall == {1: 0.5, 2: 1.0}
    assert constant.mean_average_precision == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2)


def test_bank_of_one() -> None:
    query, query_labels, bank, _ = data()
    for center in (True, False):
        scores = retrieval_scores(query, query_labels, bank[:1], torch.tensor([2]), center=center)
        assert scores.recall[1] == scores.recall[50] == scores.mean_average_precision
        assert scores.recall[1] == pytest.approx((query_labels == 2).double().mean().item())


def test_centring_changes_the_answer() -> None:
    centred, plain = (recall_at_k(*data(), ks=(1,), center=center) for center in (True, False))
    assert centred != plain


@pytest.mark.parametrize(("k", "temp"), [(1, 0.07), (7, 0.07), (7, 0.001), (300, 0.5)])
def test_weighted_knn_equals_a_loop(k: int, temp: float) -> None:
    query, query_labels, bank, bank_labels = data()
    similarity = brute_force_similarity(query, bank, center=False)
    right: dict[int, list[bool]] = {}
    for row, label in zip(similarity, query_labels.tolist(), strict=True):
        votes = np.zeros(5)
        for i in np.argsort(-row, kind="stable")[:k]:
            votes[bank_labels[i]] += np.exp((row[i] - 1) / temp)
        right.setdefault(label, []).append(bool(votes.argmax() == label))
    scores = weighted_knn(query, query_labels, bank, bank_labels, k=k, temp=temp)
    assert scores.accuracy == pytest.approx(np.mean(sum(right.values(), [])))
    assert scores.class_accuracy == pytest.approx({label: np.mean(hits) for label, hits in right.items()})
    assert (scores.predicted == query_labels).double().mean().item() == scores.accuracy
    assert knn_accuracy(query, query_labels, bank, bank_labels, k=k, temp=temp) == scores.accuracy


def test_knn_vote_of_fewer_neighbours_needs_no_new_search() -> None:
    query, query_labels, bank, bank_labels = data()
    found = search.nearest(query, bank, 50)
    for k in (1, 10, 50):
        predicted = knn_vote(found.similarity[:, :k], bank_labels[found.rows[:, :k]], temp=0.07)
        assert torch.equal(predicted, weighted_knn(query, query_labels, bank, bank_labels, k=k).predicted)


def test_knn_vote_survives_a_tiny_temperature_and_gives_equal_votes_to_the_lower_class() -> None:
    similarity = torch.tensor([[0.5, 0.5, 0.5], [1.0, -1.0, -1.0]])
    assert knn_vote(similarity, torch.tensor([[2, 1, 3], [0, 1, 1]]), temp=1e-6).tolist() == [1, 0]
    with pytest.raises(ValueError, match="temp must be positive"):
        knn_vote(similarity, torch.zeros(2, 3, dtype=torch.int64), temp=0)
    with pytest.raises(ValueError, match="labels from 0, got 0.07 and -1"):
        knn_vote(similarity, torch.tensor([[2, 1, 3], [0, -1, 1]]), temp=0.07)


@pytest.mark.parametrize("data_set", [data(), with_ties()], ids=["plain", "ties"])
def test_blocks_do_not_change_the_answer(data_set: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieval_scores(*data_set)
    monkeypatch.setattr(search, "SIMILARITIES", 500)
    monkeypatch.setattr(search, "QUERY_ROWS", 3)
    assert retrieval_scores(*data_set) == whole
    assert recall_at_k(*data_set, ks=(1, 5, 10)) == {k: whole.recall[k] for k in (1, 5, 10)}


def test_topk_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.0, 0.4, 0.6]])
    assert topk_accuracy(scores, torch.tensor([1, 1, 0]), ks=(1, 2, 5)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 5: 1.0})


def test_topk_accuracy_gives_equal_scores_to_the_lower_class() -> None:
    scores = torch.zeros(4, 4)
    assert topk_accuracy(scores, torch.arange(4), ks=(1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}


def test_topk_accuracy_refuses_what_has_no_rank() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        topk_accuracy(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0 to 3"):
        topk_accuracy(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[3\]"):
        topk_accuracy(torch.zeros(2, 3), torch.tensor([0, 1, 2]))


def test_average_views_equals_the_reference(conformance: dict[str, Any]) -> None:
    case = conformance["tta_average_of_softmax"]
    logits = torch.tensor(case["logits"]).view(-1, case["views_per_video"], 3)
    assert torch.allclose(average_views(logits), torch.tensor(case["mean_probabilities"]), atol=1e-7)
    loss = -average_views(logits).log_softmax(1).gather(1, torch.tensor(case["labels_out"])[:, None]).mean()
    assert loss.item() == pytest.approx(case["reported_val_loss_cross_entropy_of_probabilities"], abs=1e-6)


def test_average_views_of_half_precision_is_float32_and_sums_to_one() -> None:
    logits = torch.randn(5, 30, 400, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 50
    probabilities = average_views(logits)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(5))
    with pytest.raises(ValueError, match=r"got \[5, 400\]"):
        average_views(logits[:, 0])


def test_confusion_matrix_equals_scikit_learn() -> None:
    g = torch.Generator().manual_seed(0)
    predicted, labels = torch.randint(6, (200,), generator=g), torch.randint(5, (200,), generator=g)
    matrix = confusion_matrix(predicted, labels, 7)
    assert matrix.dtype == torch.int64
    assert np.array_equal(matrix, sklearn_confusion_matrix(labels, predicted, labels=range(7)))
    shares = per_class_accuracy(predicted, labels)
    assert list(shares) == [0, 1, 2, 3, 4]
    assert shares == pytest.approx({label: (matrix[label, label] / matrix[label].sum()).item() for label in range(5)})


def test_confusion_matrix_refuses_classes_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"predicted must be in \[0, 3\), got 0 to 3"):
        confusion_matrix(torch.tensor([0, 3]), torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got -1 to 1"):
        confusion_matrix(torch.tensor([0, 2]), torch.tensor([-1, 1]), 3)
    assert confusion_matrix(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2).sum() == 0


def test_bad_input_is_refused() -> None:
    query, query_labels, bank, bank_labels = data()
    for function in (recall_at_k, retrieval_scores, weighted_knn):
        with pytest.raises(ValueError, match="got 37 and 0 rows"):
            function(query, query_labels, bank[:0], bank_labels[:0])
        with pytest.raises(ValueError, match=r"bank_labels must be one integer per row of bank, got torch.int64 \[90\]"):
            function(query, query_labels, bank, bank_labels[1:])
        with pytest.raises(ValueError, match="query_labels must be one integer .* got torch.float32"):
            function(query, query_labels.float(), bank, bank_labels)
        with pytest.raises(ValueError, match="bank row 0 is not finite"):
            function(query, query_labels, bank.clone().fill_(float("nan")), bank_labels)
    with pytest.raises(ValueError, match=r"ks must hold integers of at least 1, got \(0, 1\)"):
        recall_at_k(query, query_labels, bank, bank_labels, ks=(0, 1))
