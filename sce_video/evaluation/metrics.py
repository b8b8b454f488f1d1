"""Metrics as pure functions of tensors: retrieval, nearest neighbours and classification.

`search` computes cosine similarities block by block; no function holds all Q x N of them.
Classes are integer ids. Tables per class are dictionaries keyed by id, for the classes of the queries.

Shape legend: Q queries, N bank entries, C feature width, L classes, V views of one video, R relevant bank entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import search

RECALL_KS = (1, 5, 10, 20, 25, 50)
FEW_TIES = 32  # up to this many tied relevant entries are counted one by one; with more, the row is sorted


class RetrievalScores(NamedTuple):
    """Result of `retrieval_scores`; shares in [0, 1].

    recall: k -> share of queries with an entry of their class among the k nearest. mean_average_precision: mean over
    queries (not classes) of average precision over the whole bank; None if not requested. class_recall, class_precision:
    the same per class. class_queries: class -> number of queries. absent: number of queries whose class is not in the bank;
    they count as misses.
    """

    recall: dict[int, float]
    mean_average_precision: float | None
    class_recall: dict[int, dict[int, float]]
    class_precision: dict[int, float]
    class_queries: dict[int, int]
    absent: int


class KnnScores(NamedTuple):
    """Accuracy in [0, 1] over all queries and per class, and the predicted classes int64 [Q]."""

    accuracy: float
    class_accuracy: dict[int, float]
    predicted: Tensor


def recall_at_k(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 25),
    center: bool = True,
) -> dict[int, float]:
    """Return for each k the share of queries with an entry of their class among their k nearest bank entries.

    Uses cosine similarity after subtracting each set's own mean (`center`), as in SCE's retrieval tables. Among equal
    similarities the lower bank index ranks first. A k above N counts the whole bank. query [Q, C], bank [N, C] float;
    labels [Q] and [N] integers; values in [0, 1]. Raises ValueError for empty, mismatched or non-finite input.
    """
    return retrieval_scores(query, query_labels, bank, bank_labels, ks=ks, center=center, average_precision=False).recall


def retrieval_scores(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    ks: Sequence[int] = RECALL_KS,
    center: bool = True,
    average_precision: bool = True,
) -> RetrievalScores:
    """Return recall at each k and, by default, mean average precision, both over all queries and per class.

    Arguments, ties and errors as in `recall_at_k`. The average precision of a query is 1/R sum_i i / rank_i over the ranks
    of its R relevant entries in the whole bank (equal to scikit-learn's average_precision_score without ties). One pass over
    the similarities computes both. Without average precision only the max(ks) nearest are searched, in half the time.
    """
    _check_labels(query, query_labels, bank, bank_labels)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold integers of at least 1, got {tuple(ks)}")
    pair = (query, query_labels.cpu().numpy(), bank, bank_labels.cpu().numpy())
    first_rank, precision = (
        _rank_whole_bank(*pair, center) if average_precision else (_find_first_hits(*pair, max(ks), center), None)
    )
    labels = query_labels.cpu().numpy()
    classes = {int(label): labels == label for label in np.unique(labels)}

    def recall(rows: np.ndarray | slice) -> dict[int, float]:
        return {k: float((first_rank[rows] <= k).mean()) for k in ks}

    return RetrievalScores(
        recall=recall(slice(None)),
        mean_average_precision=None if precision is None else float(precision.mean()),
        class_recall={label: recall(rows) for label, rows in classes.items()},
        class_precision={} if precision is None else {label: float(precision[rows].mean()) for label, rows in classes.items()},
        class_queries={label: int(rows.sum()) for label, rows in classes.items()},
        absent=int((~np.isin(labels, pair[3])).sum()),
    )


def knn_accuracy(
    query: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor, *, k: int = 20, temp: float = 0.07
) -> float:
    """Return only the accuracy of `weighted_knn`."""
    return weighted_knn(query, query_labels, bank, bank_labels, k=k, temp=temp).accuracy


def weighted_knn(
    query: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor, *, k: int = 20, temp: float = 0.07
) -> KnnScores:
    """Return the scores of the weighted k-nearest-neighbour vote of Wu et al., CVPR 2018 (section 3.4).

    The k most similar bank entries (cosine, not centred) vote as in `knn_vote`. Shapes and errors as in `recall_at_k`;
    labels must not be negative.
    """
    _check_labels(query, query_labels, bank, bank_labels)
    found = search.nearest(query, bank, k)
    labels, bank_labels = query_labels.to(found.rows.device), bank_labels.to(found.rows.device)
    predicted = knn_vote(found.similarity, bank_labels[found.rows], temp=temp)
    accuracy = (predicted == labels).double().mean().item()
    return KnnScores(accuracy, per_class_accuracy(predicted, labels), predicted)


def knn_vote(similarity: Tensor, neighbor_labels: Tensor, *, temp: float) -> Tensor:
    """Return the class int64 [Q] with the most votes: each neighbour votes for its class with exp(similarity / temp).

    similarity [Q, k] best first, neighbor_labels [Q, k] integers from 0. The lower class wins a tie. To vote with a smaller
    k, pass the first k columns.
    """
    if temp <= 0 or neighbor_labels.min() < 0:
        raise ValueError(f"temp must be positive and labels from 0, got {temp} and {int(neighbor_labels.min())}")
    # exp(s - best) instead of exp(s): the same vote without overflow.
    weights = ((similarity - similarity[:, :1]) / temp).exp()
    votes = weights.new_zeros(len(similarity), int(neighbor_labels.max()) + 1)
    return votes.scatter_add_(1, neighbor_labels.long(), weights).argmax(dim=1)


def topk_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Return for each k the share of rows whose class is among the k highest scores.

    scores [Q, L] finite, labels [Q] integers in [0, L). Among equal scores the lower class ranks first. A k above L counts
    all classes. Raises ValueError for other input.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(f"scores [Q, L] need labels [Q], got {list(scores.shape)} and {list(labels.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores hold NaN or infinity: they cannot be ranked")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must be in [0, {scores.shape[1]}), got {int(labels.min())} to {int(labels.max())}")
    own = scores.gather(1, labels[:, None].long())
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & lower)).sum(dim=1)
    return {k: (rank < k).double().mean().item() for k in ks}


def average_views(logits: Tensor) -> Tensor:
    """Return probabilities [N, L]: the mean over views of softmax(logits [N, V, L]), SCE's test-time averaging.

    Computes in float32, or in float64 for float64 logits.
    """
    if logits.ndim != 3 or not logits.shape[1]:
        raise ValueError(f"logits must be [N, V, L] with at least one view, got {list(logits.shape)}")
    return (logits if logits.dtype == torch.float64 else logits.float()).softmax(dim=2).mean(dim=1)


def pair_scores(pairs: Tensor) -> dict[str, float]:
    """Return figures of features that need no labels. pairs: [N, 2, C], the features of two clips of each video.

    pair_r_at_1: share of first clips whose nearest second clip is of the same video. Videos whose clips are equal (too short
    for two) are left out; `pairs` counts the others, and without two of them it is absent.
    feature_spread: mean standard deviation of unit features times sqrt(C); 1: over the whole sphere, 0: all alike.
    effective_rank: exp of the entropy of the shares of variance along the principal axes; 1 to min(2 N, C).
    """
    unit = torch.nn.functional.normalize(pairs.flatten(0, 1).double(), dim=1)
    variances = torch.linalg.svdvals(unit - unit.mean(dim=0)).square()
    shares = variances / variances.sum().clamp_min(1e-30)
    scores = {
        "feature_spread": (unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5).item(),
        "effective_rank": torch.special.entr(shares).sum().exp().item(),
    }
    differ = pairs[(pairs[:, 0] != pairs[:, 1]).any(dim=1)]
    rows = torch.arange(len(differ))
    if len(differ) > 1:
        scores["pair_r_at_1"] = recall_at_k(differ[:, 0], rows, differ[:, 1], rows, ks=(1,))[1]
    return {"pairs": float(len(differ)), **scores}


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return counts int64 [L, L]: row = true class, column = predicted class. predicted, labels [Q] in [0, L)."""
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"predicted and labels must be [Q], got {list(predicted.shape)} and {list(labels.shape)}")
    for name, values in (("predicted", predicted), ("labels", labels)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(f"{name} must be in [0, {num_classes}), got {int(values.min())} to {int(values.max())}")
    cells = labels.long() * num_classes + predicted.long().to(labels.device)
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(predicted: Tensor, labels: Tensor) -> dict[int, float]:
    """Return class -> share of its rows predicted correctly, for the classes in labels. predicted, labels [Q]."""
    right = predicted == labels.to(predicted.device)
    return {int(label): right[labels == label].double().mean().item() for label in labels.unique()}


def _check_labels(query: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor) -> None:
    for name, rows, labels in (("query", query, query_labels), ("bank", bank, bank_labels)):
        if labels.ndim != 1 or len(labels) != len(rows) or labels.is_floating_point():
            raise ValueError(
                f"{name}_labels must be one integer per row of {name}, "
                f"got {labels.dtype} {list(labels.shape)} for {len(rows)} rows"
            )


def _find_first_hits(
    query: Tensor, query_labels: np.ndarray, bank: Tensor, bank_labels: np.ndarray, k: int, center: bool
) -> np.ndarray:
    """Return the rank from 1 of the nearest relevant entry among the k nearest [Q]; infinity without one."""
    rows = search.nearest(query, bank, k, center="own" if center else "none").rows.cpu().numpy()
    hits = bank_labels[rows] == query_labels[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)


def _rank_whole_bank(
    query: Tensor, query_labels: np.ndarray, bank: Tensor, bank_labels: np.ndarray, center: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of the nearest relevant entry (infinity without one) and average precision, float64 [Q] each."""
    members = {int(label): np.flatnonzero(bank_labels == label) for label in np.unique(query_labels)}
    first_rank, precision = np.full(len(query), np.inf), np.zeros(len(query))
    for first, block in search.similarity_rows(query, bank, center="own" if center else "none"):
        for row, ranks in enumerate(_rank_rows(block.cpu().numpy(), query_labels[first:], members), first):
            if len(ranks):
                first_rank[row] = ranks[0]
                precision[row] = (np.arange(1, len(ranks) + 1) / ranks).mean()
    return first_rank, precision


def _rank_rows(similarity: np.ndarray, labels: np.ndarray, members: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    # NumPy releases the GIL while it sorts, so threads run in parallel.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(relevant_ranks, similarity, (members[int(label)] for label in labels[: len(similarity)]))


def relevant_ranks(similarity: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the ranks from 1, ascending int64 [R], of the entries `members` [R] in descending order of similarity [N].

    Among equal similarities the lower index ranks first. Sorts the values (far cheaper than an argsort), finds each member
    by binary search, and counts tied members one by one.
    """
    ascending, own = np.sort(similarity), similarity[members]
    above = len(ascending) - np.searchsorted(ascending, own, side="right")
    tied = np.flatnonzero(len(ascending) - np.searchsorted(ascending, own, side="left") - above > 1)
    if len(tied) > FEW_TIES:
        rank = np.empty(len(similarity), dtype=np.int64)
        rank[np.argsort(-similarity, kind="stable")] = np.arange(len(similarity))
        above = rank[members]
    else:
        for member in tied:
            above[member] += np.count_nonzero(similarity[: members[member]] == own[member])
    return np.sort(above) + 1
