"""Losses between views of a video, as pure functions: SCE's, then those of its relatives.

Shape legend: B clips of this rank, C feature width, K queue entries, N keys of all ranks.
All vectors are unit rows, but those of `sigreg`.
Similarities and softmax are computed in float32 even under autocast (float64 stays float64):
the spacing of half precision near 1, divided by a temperature of 0.05, is an error of 0.01 in a logit. Gradients flow
through `query` only, where there is a query.

Sources: SCE, Denize et al., "Similarity Contrastive Estimation for Image and Video Soft Contrastive Self-Supervised
Learning", MVAP 2023 (eq. 4-7); InfoNCE with a queue, He et al., "Momentum Contrast", CVPR 2020 (eq. 1).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    # The meta device, on which memory is planned, has no autocast.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def sce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    *,
    temp: float,
    temp_target: float,
    coeff: float,
    batch_keys: Tensor | None = None,
    batch_offset: int = 0,
    mask_positive: bool = True,
) -> Tensor:
    """Return the Similarity Contrastive Estimation loss, averaged over the batch.

    ::

        p_b = softmax_n(query_b . n / temp)               over all candidates n: the positive key and the queue
        s_b = softmax_n(key_b . n / temp_target)          over all candidates but the positive (eq. 5)
        w_b = coeff * onehot(positive) + (1 - coeff) * s_b                                 (eq. 6)
        loss = mean_b( -sum_n w_bn log p_bn )                                              (eq. 7)

    Args:
        query: [B, C] unit rows, the online branch.
        key: [B, C] unit rows, the momentum branch on another view; without gradient.
        queue: [K, C] unit rows, keys of earlier steps; None requires `batch_keys`.
        temp: temperature of the query's similarities, > 0.
        temp_target: temperature of the target's similarities, > 0; smaller than `temp` sharpens the target.
        coeff: weight of the positive in the target, in [0, 1]; 1 is InfoNCE (MoCo).
        batch_keys: [N, C] unit rows, the keys of all ranks as additional candidates; row `batch_offset + b` is key b.
        batch_offset: row of this rank's first key in `batch_keys`.
        mask_positive: True excludes the own key from s as in the paper; False sets its logit to 0, as the authors' code does
            (noticeable only if all similarities to the queue are low). Ignored with `batch_keys`.

    Returns:
        Scalar, float32 or float64.
    """
    if queue is None and batch_keys is None:
        raise ValueError("sce needs a queue or batch_keys: without them the query has no negatives")
    with _without_autocast(query):
        query, key = _full_precision(query), _full_precision(key.detach())
        parts = [keys.detach().to(query.dtype) for keys in (batch_keys, queue) if keys is not None]
        others = torch.cat(parts) if len(parts) == 2 else parts[0]  # cat of one would copy the whole queue
        logits = query @ others.T / temp  # [B, N + K]
        relations = key @ others.T / temp_target
        if batch_keys is None:
            logits = torch.cat([(query * key).sum(1, keepdim=True) / temp, logits], dim=1)  # [B, 1 + K]
            own_logit = float("-inf") if mask_positive else 0.0
            relations = torch.cat([relations.new_full((len(key), 1), own_logit), relations], dim=1)
            own = torch.zeros(len(query), dtype=torch.long, device=query.device)
        else:
            own = torch.arange(len(query), device=query.device) + batch_offset
            relations[torch.arange(len(key), device=key.device), own] = float("-inf")
        target = (1 - coeff) * relations.softmax(dim=1)
        target[torch.arange(len(key), device=key.device), own] += coeff
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def info_nce(query: Tensor, key: Tensor, queue: Tensor, *, temp: float) -> Tensor:
    """Return InfoNCE over the own key and a queue (MoCo eq. 1), averaged over the batch: `sce` with coeff 1.

    query, key [B, C] and queue [K, C] are unit rows; the result is a scalar, float32 or float64.
    """
    with _without_autocast(query):
        query, key = _full_precision(query), _full_precision(key.detach())
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ queue.detach().to(query.dtype).T], dim=1) / temp  # [B, 1 + K]
        return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def in_batch(query: Tensor, keys: Tensor, *, temp: float, offset: int = 0) -> Tensor:
    """Return InfoNCE among the keys of one step, times 2 * temp (MoCo v3, Chen et al., ICCV 2021, Algorithm 1); scalar.

    query [B, C] and keys [N, C] of all ranks are unit rows; row `offset + b` of the keys is the positive of query b.
    """
    with _without_autocast(query):
        query, keys = _full_precision(query), _full_precision(keys.detach())
        own = torch.arange(len(query), device=query.device) + offset
        return 2 * temp * torch.nn.functional.cross_entropy(query @ keys.T / temp, own)


def ressl(query: Tensor, key: Tensor, queue: Tensor, *, temp: float, temp_target: float) -> Tensor:
    """Return the cross-entropy between the similarities of key and query to a queue (ReSSL, Zheng et al., 2021, eq. 3-5).

    query, key [B, C] and queue [K, C] are unit rows; the positive pair is not compared. Scalar. It is `sce` with coeff 0 but
    for the positive in the query's softmax: sce = ressl - mean(log(1 - p_positive)).
    """
    with _without_autocast(query):
        query, key, queue = _full_precision(query), _full_precision(key.detach()), _full_precision(queue.detach())
        target = (key @ queue.T / temp_target).softmax(dim=1)
        return -(target * (query @ queue.T / temp).log_softmax(dim=1)).sum(dim=1).mean()


def nt_xent(first: Tensor, second: Tensor, all_first: Tensor, all_second: Tensor, *, temp: float, offset: int = 0) -> Tensor:
    """Return SimCLR's loss between two views (Chen et al., ICML 2020, eq. 1), averaged over both directions; scalar.

    first, second: [B, C] unit rows of this rank. all_first, all_second: [N, C] those of all ranks, with this rank's from row
    `offset` on. Gradients flow through all four. Each row's candidates are all other 2 N - 1 rows of both views.
    """
    with _without_autocast(first):
        views = _full_precision(first), _full_precision(second)
        all_views = _full_precision(all_first), _full_precision(all_second)
        rows, count = torch.arange(len(first), device=first.device) + offset, len(all_first)
        own = torch.nn.functional.one_hot(rows, 2 * count).bool()
        total = []
        for anchor, (same, other) in zip(views, (all_views, all_views[::-1]), strict=True):
            logits = anchor @ torch.cat([same, other]).T / temp  # [B, 2 N]
            logits = logits.masked_fill(own, float("-inf"))
            total.append(torch.nn.functional.cross_entropy(logits, rows + count))
        return (total[0] + total[1]) / 2


def byol(query: Tensor, key: Tensor) -> Tensor:
    """Return the mean squared distance of unit rows [B, C], 2 - 2 cos (BYOL, Grill et al., NeurIPS 2020, eq. 2); scalar."""
    with _without_autocast(query):
        return 2 - 2 * (_full_precision(query) * _full_precision(key.detach())).sum(dim=1).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Return soft codes [N, K] of scores [N, K] that use all K prototypes equally (SwAV, Caron et al., 2020, eq. 3-5).

    Rows sum to 1. epsilon: entropy of the codes. iterations: of normalising columns, then rows. N: the rows of all ranks.
    """
    with _without_autocast(scores):
        codes = _full_precision(scores) / epsilon
        codes = (codes - codes.max()).exp()  # the same codes: only ratios count
        for _ in range(iterations):
            codes = codes / codes.sum(dim=0) / codes.shape[1]
            codes = codes / codes.sum(dim=1, keepdim=True) / len(codes)
        return codes * len(codes)


def swapped(scores: Tensor, codes: Tensor, *, temp: float) -> Tensor:
    """Return the cross-entropy between a view's scores and another view's codes, [B, K] both (SwAV, eq. 2); scalar."""
    with _without_autocast(scores):
        return -(codes * (_full_precision(scores) / temp).log_softmax(dim=1)).sum(dim=1).mean()


def sigreg(rows: Tensor, directions: Tensor, *, span: float = 5.0, knots: int = 17) -> Tensor:
    """Return how far rows are from a standard normal distribution: SIGReg (Balestriero & LeCun, LeJEPA, 2025, sec. 4).

    The Epps-Pulley statistic of the rows' projections on random directions, averaged over directions::

        N * integral |mean_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,   trapezoidal rule, knots in [-span, span]

    rows: [N, C] of all ranks. directions: [C, M] unit columns. Scalar; 0 only for a normal distribution along all of them.
    """
    with _without_autocast(rows):
        rows = _full_precision(rows)
        knot = torch.linspace(-span, span, knots, dtype=rows.dtype, device=rows.device)
        angles = (rows @ directions.to(rows.dtype)).unsqueeze(-1) * knot  # [N, M, knots]
        normal = torch.exp(-(knot**2) / 2)
        error = (angles.cos().mean(dim=0) - normal) ** 2 + angles.sin().mean(dim=0) ** 2
        return len(rows) * torch.trapezoid(error * normal, knot, dim=-1).mean()
