"""Mixtures: shares to the row, an order that is a function of (seed, epoch), names with colons, wrong weights refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RECIPE, compose_pretrain, losses

from sce_video.data import loader, manifest, mixture
from sce_video.data.crops import RandomResized
from sce_video.data.dataset import ClipDataset
from sce_video.errors import InputError, Preempted
from sce_video.programs.pretrain import pretrain
from sce_video.training import rows

SOURCES = mixture.share([("a.csv", 2.0), ("b.csv", 1.0)], [10, 50])


def sampler(**options: int) -> loader.StepSampler:
    settings = {"seed": 3, "num_rows": 60, "batch": 12, "accumulate": 1, "rank": 0, "world_size": 1}
    return loader.StepSampler(**{**settings, "start_step": 0, "total_steps": 50, **options}, sources=SOURCES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.csv", [("a.csv", 1.0)]),
        ("[a.csv:2,b.csv:1]", [("a.csv", 2.0), ("b.csv", 1.0)]),
        ("[a.csv, b.csv:0.5]", [("a.csv", 1.0), ("b.csv", 0.5)]),
        ("[synthetic:1,/data/b c.csv:1e2]", [("synthetic", 1.0), ("/data/b c.csv", 100.0)]),
        ("[C:\\data\\a.csv:2,D:/b.csv]", [("C:\\data\\a.csv", 2.0), ("D:/b.csv", 1.0)]),
        ("[my:list.csv:3,b:c.csv]", [("my:list.csv", 3.0), ("b:c.csv", 1.0)]),
        ("a:2.csv", [("a:2.csv", 1.0)]),
    ],
)
def test_lists_and_weights(text: str, expected: list[tuple[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b:c.csv").touch()
    assert mixture.parse(text) == expected


def test_a_folder_whose_name_is_in_brackets_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "[a,b]").mkdir()
    assert mixture.parse(f"{tmp_path}/[a,b]") == [(f"{tmp_path}/[a,b]", 1.0)]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "two", ""])
def test_wrong_weights_are_refused(weight: str) -> None:
    with pytest.raises(InputError, match=f"the weight '{weight}' of a.csv must be a number above 0"):
        mixture.parse(f"[a.csv:{weight},b.csv:1]")


def test_a_list_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        mixture.parse("[a.csv:1,a.csv:2]")


def test_an_epoch_has_each_list_s_share_to_the_row_and_rows_come_equally_often() -> None:
    assert [source.taken for source in SOURCES] == [40, 20]
    drawn, keys = Counter[int](), set[tuple[int, int]]()
    for epoch in range(25):
        order = mixture.epoch_order(7, epoch, SOURCES)
        assert sum(row < 10 for _, row in order) == 40
        assert len(order) == 60
        drawn.update(row for _, row in order)
        assert not keys & set(order), "a row comes again only in another pass, with other clips"
        keys |= set(order)
    assert set(drawn[row] for row in range(10)) == {100}
    assert set(drawn[row] for row in range(10, 60)) == {10}
    assert mixture.epoch_order(7, 3, SOURCES) != mixture.epoch_order(8, 3, SOURCES)
    odd = mixture.share([("a", 1.0), ("b", 1.0), ("c", 1.0)], [3, 3, 4])
    assert sorted(source.taken for source in odd) == [3, 3, 4]


def test_shares_of_a_batch_are_those_of_a_random_draw() -> None:
    """Of 12 rows of 60, 40 of them of the first list: mean 8, variance 12 * 2/3 * 1/3 * 48/59 (hypergeometric)."""
    own = np.array([sum(row < 10 for _, row in batch) for batch in sampler(total_steps=2000)])
    deviation = np.sqrt(12 * 2 / 9 * 48 / 59)
    assert abs(own.mean() - 8) < 1e-9, "whole epochs have whole shares"
    assert own.std() == pytest.approx(deviation, rel=0.08)
    assert own.min() >= 8 - 5 * deviation


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_order_and_resuming_is_starting_later(world_size: int) -> None:
    whole = list(sampler())
    parts = [list(sampler(rank=rank, world_size=world_size, accumulate=2)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert [key for part in parts for micro in part[2 * step : 2 * step + 2] for key in micro] == batch
    assert list(sampler(start_step=17)) == whole[17:]


def test_a_row_drawn_twice_in_an_epoch_gives_other_clips(videos: Path) -> None:
    box = RandomResized((0.3, 0.8), (0.75, 4 / 3))
    data = ClipDataset(manifest.read(videos / "train.csv")[:10], num_frames=4, clip_seconds=0.8, draw_boxes=[box], seed=1)
    keys = [key for key in mixture.epoch_order(7, 0, SOURCES) if key[1] == 4]
    assert len(keys) == 4
    assert len({torch.as_tensor(data[key].clips[0]).numpy().tobytes() for key in keys}) == 4


def test_a_single_list_keeps_its_order_to_the_bit(videos: Path) -> None:
    for source in (f"{videos}/train.csv", f"[{videos}/train.csv:3]"):
        found, held, sources = rows.read(compose_pretrain(*TINY_RECIPE, f"data.train='{source}'").data)
        assert (len(found), held, sources) == (24, [], ())
    assert loader.step_keys(3, 4, num_rows=24, batch=8) == [
        (1, row) for row in torch.randperm(24, generator=loader.generator(3, "order", 1)).tolist()[8:16]
    ]


@pytest.mark.slow
def test_a_mixture_pretrains_says_its_counts_and_resumes_to_the_bit(videos: Path, tmp_path: Path) -> None:
    source = f"[{videos}/train.csv:1,{videos}/val.csv:2]"
    options = [*TINY_RECIPE, f"data.train='{source}'"]
    pretrain(compose_pretrain(*options, f"out={tmp_path}/straight"))
    text = (tmp_path / "straight/log.txt").read_text()
    assert "train.csv: 24 rows, weight 1: 11 of an epoch's 32" in text
    assert "val.csv: 8 rows, weight 2: 21 of an epoch's 32" in text
    assert f"epoch 1: 11 rows of {videos}/train.csv, 21 rows of {videos}/val.csv" in text
    assert text.count(" rows of ") == 2 * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
        patch.setenv("SCE_VIDEO_FAULT", "term@step=6")
        with pytest.raises(Preempted):
            pretrain(compose_pretrain(*options, f"out={tmp_path}/stopped"))
    pretrain(compose_pretrain(*options, f"out={tmp_path}/stopped"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    with pytest.raises(InputError, match="holds a run of another recipe"):
        pretrain(compose_pretrain(*TINY_RECIPE, f"data.train='{source.replace(':2', ':3')}'", f"out={tmp_path}/stopped"))
