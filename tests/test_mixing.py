"""Mixup and CutMix: neighbours, shares and boxes as drawn, and the label's share is the pixels'."""

from __future__ import annotations

import pytest
import torch

from sce_video.augment import mixing


def test_mixup_mixes_neighbours_of_the_batch() -> None:
    clips, targets = torch.arange(5.0).view(5, 1, 1, 1, 1), torch.eye(5)
    drawn = mixing.draw(0, [(0, row) for row in range(5)], mixup_alpha=0.4, cutmix_alpha=0)
    shares = drawn.shares
    assert shares[0] == shares[1] != shares[2] == shares[3]
    assert shares[4] == 1
    assert not drawn.boxes.any()
    mixed, mixed_targets = mixing.apply(clips, targets, drawn)
    for row, partner in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4)):
        own = shares[row]
        assert mixed[row].item() == pytest.approx((own * row + (1 - own) * partner).item())
        assert torch.allclose(mixed_targets[row], own * targets[row] + (1 - own) * targets[partner])
    draws = torch.cat([mixing.draw(seed, [(0, 0), (0, 1)], mixup_alpha=2, cutmix_alpha=0).shares[:1] for seed in range(2000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.var().item() == pytest.approx(0.05, abs=0.005)  # Beta(2, 2)


def test_cutmix_exchanges_a_box_and_shares_the_label_by_its_pixels() -> None:
    count, side = 41, 16
    clips = torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 3, 2, side, side).clone()
    drawn = mixing.draw(0, [(0, row) for row in range(count)], mixup_alpha=0, cutmix_alpha=1.0)
    mixed, targets = mixing.apply(clips, torch.eye(count), drawn)
    assert (drawn.shares == 1).all()
    for row in range(count):
        partner = row ^ 1 if row < count - 1 else row
        foreign = mixed[row] == partner
        assert (foreign | (mixed[row] == row)).all()
        assert torch.equal(foreign, foreign[:1, :1].expand_as(foreign)), "the same box in all frames and channels"
        if partner == row:
            continue
        lines, columns = foreign[0, 0].any(dim=1), foreign[0, 0].any(dim=0)
        assert foreign[0, 0].sum() == lines.sum() * columns.sum(), "a rectangle"
        assert targets[row, partner].item() == pytest.approx(foreign[0, 0].sum().item() / side**2, abs=1e-6)
        assert targets[row].sum().item() == pytest.approx(1)


def test_cutmix_boxes_follow_their_definition() -> None:
    boxes = torch.cat([mixing.draw(seed, [(0, 0), (0, 1)], mixup_alpha=0, cutmix_alpha=1.0).boxes[:1] for seed in range(2000)])
    top, left, tall, wide = boxes.unbind(1)
    assert (boxes >= 0).all()
    assert ((top + tall <= 1 + 1e-9) & (left + wide <= 1 + 1e-9)).all()
    inner = (top > 0) & (left > 0) & (top + tall < 1) & (left + wide < 1)
    assert torch.allclose(tall[inner], wide[inner]), "square where it is not cut by the border"
    assert inner.any()
    assert not inner.all()


def test_with_both_alphas_half_of_the_pairs_are_cut_and_the_others_mixed_as_without() -> None:
    keys = [(0, row) for row in range(400)]
    both = mixing.draw(3, keys, mixup_alpha=0.4, cutmix_alpha=1.0)
    cut = both.boxes.any(dim=1)
    assert 0.4 < cut.double().mean() < 0.6
    alone = mixing.draw(3, keys, mixup_alpha=0.4, cutmix_alpha=0)
    assert torch.equal(both.shares[~cut], alone.shares[~cut])
    assert (both.shares[cut] == 1).all()
