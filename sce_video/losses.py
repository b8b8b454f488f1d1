"""Contrastive losses between a query and a key encoder, as pure functions.

Shape legend: B clips of this rank, C feature width, K queue entries, N keys of all ranks.
All vectors are unit rows. Similarities and softmax are computed in float32 even under autocast (float64 stays float64):
the spacing of half precision near 1, divided by a temperature of 0.05, is an error of 0.01 in a logit. Gradients flow
through `query` only.

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
