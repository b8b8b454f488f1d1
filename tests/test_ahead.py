"""Augmenting one batch ahead changes what happens when, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_RECIPE, compose_pretrain, losses

from sce_video import distributed
from sce_video.errors import Preempted
from sce_video.programs.pretrain import build_method, pretrain
from sce_video.runs import checkpoint
from sce_video.runs.folder import RunFolder
from sce_video.runs.stop import StopRequest
from sce_video.training.loop import train
from sce_video.training.setup import open_log, set_up_pretraining


def train_ahead(*options: str) -> Path:
    """Pretrain as `pretrain` does, with what is the default on GPUs."""
    cfg = compose_pretrain(*options)
    with (
        distributed.session("cpu") as device,
        StopRequest(cfg.run_folder) as stop,
        RunFolder(cfg.run_folder, cfg, stop) as folder,
    ):
        run, _, _ = set_up_pretraining(cfg, build_method, device, folder)
        assert not run.ahead, "a CPU has nothing to overlap"
        run.ahead = True
        with open_log(run, clips_per_step=2 * cfg.optim.batch, every=1) as log:
            train(run, log, stop)
        return Path(folder.path)


def digest(folder: Path) -> str:
    return checkpoint.state_digest(checkpoint.load(checkpoint.find(folder))[0])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_ahead_logs_the_same_losses_to_the_bit(accumulate: int, videos: Path, tmp_path: Path) -> None:
    options = [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", f"optim.accumulate={accumulate}"]
    plain = pretrain(compose_pretrain(*options, f"out={tmp_path / 'plain'}"))
    ahead = train_ahead(*options, f"out={tmp_path / 'ahead'}")
    assert losses(ahead) == losses(plain)
    assert digest(ahead) == digest(plain)


def test_a_run_ahead_that_is_stopped_continues_with_the_batch_that_was_not_used(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY_RECIPE, f"data.train={videos / 'train.csv'}"]
    plain = pretrain(compose_pretrain(*options, f"out={tmp_path / 'plain'}"))
    out = tmp_path / "ahead"
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", "term@step=5")
    with pytest.raises(Preempted):
        train_ahead(*options, f"out={out}")
    monkeypatch.delenv("SCE_VIDEO_FAULT")
    train_ahead(*options, f"out={out}")
    assert losses(out) == losses(plain)
    assert digest(out) == digest(plain)
