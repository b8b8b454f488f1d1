"""Pretrain an encoder without labels, on one process or many, and continue where a run was stopped.

    python tools/pretrain.py                                  # the demo: built-in videos, minutes on a CPU
    python tools/pretrain.py data.train=/data/my_videos       # any folder of videos, with values that fit it
    python tools/pretrain.py recipe=sce_r3d18_k400 data.train=/data/k400/train.csv
    torchrun --nproc-per-node 8 tools/pretrain.py recipe=...  # the same on 8 GPUs

The same command on the same folder continues a run. Read next: `training/loop.py`, `methods/sce.py`, `losses.py`,
`data/dataset.py`, `augment/pipeline.py`.
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/pretrain.py is no program: it is run by python tools/pretrain.py")

from collections.abc import Callable
from pathlib import Path

from torch import nn

from .. import distributed
from ..config.pretrain import PretrainConfig
from ..methods import build_method, evaluated
from ..runs.background_save import Saver
from ..runs.folder import RunFolder
from ..runs.stop import StopRequest
from ..training.extension import extension
from ..training.handing_on import next_command
from ..training.log import RunLog
from ..training.loop import Run, train
from ..training.monitor import Monitor
from ..training.preview import preview
from ..training.setup import open_log, open_session, set_up_pretraining

NAMES = {"knn_top1": "kNN", "r_at_1": "R@1", "pair_r_at_1": "R@1 of the same video"}  # figures that are shares


def pretrain(cfg: PretrainConfig, build: Callable[[PretrainConfig], nn.Module] = build_method) -> Path:
    """Train as cfg says, or continue, and return the run folder. build: returns the method, see `methods`.

    With cfg.preview only that picture is written, and its path returned. Raises InputError before anything is written, Stopped
    when training cannot go on, Preempted when it was asked to stop.
    """
    cfg = extension(cfg) if cfg.extend else cfg
    if cfg.preview:
        return preview(cfg)
    with (
        open_session(cfg.system, cfg.optim.precision) as device,
        StopRequest(cfg.run_folder) as stop,
        RunFolder(cfg.run_folder, cfg, stop) as folder,
    ):
        run, monitor, lists = set_up_pretraining(cfg, build, device, folder)
        beginning = f"network of {cfg.init}" if cfg.init else "untrained network"
        clips_per_step = len(cfg.augment.views) * cfg.optim.batch
        with open_log(run, clips_per_step=clips_per_step, every=cfg.system.log_every) as log:
            log.message(f"{'continuing' if run.step else 'training'} {describe(cfg, run)}")
            for remark in run.remarks:
                log.message(remark)
            if monitor:
                run.evaluate = score_with(monitor, beginning)
                if not run.step and not cfg.after:
                    score_untrained(run, monitor, log, beginning)
            train(run, log, stop)
            log.message(f"done: run folder {folder.path}; next: {next_command(cfg, folder.path, lists)}")
        return folder.path


def score_untrained(run: Run, monitor: Monitor, log: RunLog, beginning: str) -> None:
    """Score the encoder before the first step: the baseline, kept in every checkpoint and printed beside later scores."""
    run.notes["untrained"] = monitor.score(evaluated(run.method).backbone)
    log.evaluation(0, run.notes["untrained"])
    log.message(f"{beginning}: {scores(run.notes['untrained'])} ({monitor.about})")


def score_with(monitor: Monitor, beginning: str) -> Callable[[Run, RunLog, Saver], None]:
    """Return the evaluation that the loop calls: scores of the encoder beside those of the untrained network."""

    def score(run: Run, log: RunLog, _: Saver) -> None:
        figures = monitor.score(evaluated(run.method).backbone)
        log.evaluation(run.step, figures)
        epoch = run.step // run.steps_per_epoch
        untrained = {name: value for name, value in run.notes["untrained"].items() if name in figures}  # by the same scores
        log.message(f"epoch {epoch}: {scores(figures)} | {beginning}: {scores(untrained)} ({monitor.about})")

    return score


def describe(cfg: PretrainConfig, run: Run) -> str:
    """Return one line on this run, with the derived numbers."""
    local = cfg.augment.sizes[cfg.augment.global_views :]
    smaller = f" with {len(local)} local view(s) of {', '.join(map(str, dict.fromkeys(local)))} px" if local else ""
    return (
        f"{cfg.name}: {run.skipped.num_videos} videos, {cfg.model.backbone}, {cfg.optim.epochs} epochs x "
        f"{run.steps_per_epoch} steps of {cfg.optim.batch}{smaller}, lr {cfg.optim.lr:g}, {distributed.world_size()} "
        f"process(es) on {run.augment.device.type}, from step {run.step} of {run.total_steps}, into {run.folder.path}"
    )


def scores(figures: dict[str, float]) -> str:
    """Return the figures of an evaluation as text."""
    shown = [f"{NAMES[name]} {100 * value:.1f} %" for name, value in figures.items() if name in NAMES]
    shown += [f"{name.replace('_', ' ')} {figures[name]:.2f}" for name in ("feature_spread", "effective_rank") if name in figures]
    missing = figures["videos_listed"] - figures["videos_read"] if shown else 0
    return (", ".join(shown) or "not scored") + (f" ({missing:.0f} videos unreadable)" if missing else "")
