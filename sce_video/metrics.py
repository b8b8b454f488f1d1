"""Metrics as pure functions of tensors.

Shape legend: Q queries, N bank entries, C feature width, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries compared with the whole bank at once: bounds memory at CHUNK * N similarities


def _nearest(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarity and index [Q, k] of the k bank rows with the largest dot product, best first."""
    parts = [(chunk @ bank.T).topk(k, dim=1) for chunk in query.split(CHUNK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def recall_at_k(
    query: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 25),
    center: bool = True,
) -> dict[int, float]:
    """Return for each k the share of queries with at least one of their k nearest bank entries of their own class.

    Cosine similarity after subtracting each set's own mean (`center`), the protocol of SCE's retrieval tables. A k above
    N counts the whole bank. query [Q, C], bank [N, C] float; labels [Q] and [N] integers; values in [0, 1].
    """
    if not len(query) or not len(bank):
        raise ValueError(f"recall_at_k needs queries and a bank, got {len(query)} and {len(bank)} rows")
    if center:
        query, bank = query - query.mean(dim=0), bank - bank.mean(dim=0)
    query, bank = F.normalize(query, dim=1), F.normalize(bank, dim=1)
    _, indices = _nearest(query, bank, min(max(ks), len(bank)))
    hits = bank_labels[indices] == query_labels[:, None]
    return {k: hits[:, :k].any(dim=1).double().mean().item() for k in ks}


def knn_accuracy(
    query: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor, *, k: int = 20, temp: float = 0.07
) -> float:
    """Return the accuracy in [0, 1] of the weighted k-nearest-neighbour vote of Wu et al., CVPR 2018 (eq. 7).

    Each of the k most similar bank entries (cosine) votes for its class with weight exp(similarity / temp).
    Shapes as in `recall_at_k`; labels in [0, L).
    """
    similarity, indices = _nearest(F.normalize(query, dim=1), F.normalize(bank, dim=1), min(k, len(bank)))
    # exp(s - best) instead of exp(s): the vote is the same and nothing overflows.
    weights = ((similarity - similarity[:, :1]) / temp).exp()
    votes = torch.zeros(len(query), int(bank_labels.max()) + 1, dtype=weights.dtype, device=weights.device)
    votes.scatter_add_(1, bank_labels[indices], weights)
    return (votes.argmax(dim=1) == query_labels).double().mean().item()


def topk_accuracy(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Return for each k the share of rows whose class is among the k highest scores. scores [Q, L], labels [Q]."""
    best = scores.topk(min(max(ks), scores.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    return {k: hits[:, :k].any(dim=1).double().mean().item() for k in ks}
