"""Train a finished run on: a run in a folder of its own that begins with all of the finished one's state.

Its learning rate falls without warm-up from `RATE` of the finished run's base rate to 0 on half a cosine (a restart as in SGDR,
Loshchilov & Hutter, 2017). The method's schedules, e.g. of the target's momentum, begin anew with the rate. The next seed
draws other orders and views than those that were trained on. `docs/own_videos.md` states the same for users.
"""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..config.pretrain import PretrainConfig
from ..errors import InputError
from ..methods import section_name
from ..runs import checkpoint
from ..runs.folder import check_run_folder, length_of
from . import optim

RATE = 0.1  # of the finished run's base rate; that of an extension is kept
# Options of methods for the first epochs, and the values that turn them off.
START: dict[str, Any] = {"warmup_epochs": 0.0, "coeff_start": None, "temp_target_start": None, "freeze_epochs": 0.0}


def extension(cfg: PretrainConfig) -> PretrainConfig:
    """Return the options of the run that trains the one of `cfg` on for `cfg.extend` epochs.

    Raises InputError where the folder holds no run, or one of other options. Whether it is finished is found by `load_finished`.
    """
    finished = replace(cfg, extend=0)
    begun = (cfg.run_folder / "config.yaml").is_file()  # then the finished run may be gone
    if not begun and not check_run_folder(finished.run_folder, finished):
        raise InputError(
            f"extend={cfg.extend} trains a finished run on, and out={finished.run_folder} holds none: name its folder"
        )
    rate = cfg.optim.lr_per_256 * (1 if cfg.after else RATE)
    return replace(
        finished,
        out=str(cfg.run_folder),
        after=str(finished.run_folder),
        seed=cfg.seed + 1,
        optim=replace(cfg.optim, epochs=cfg.extend, warmup_epochs=0.0, lr_per_256=rate),
        **_without_start(cfg),
    )


def _without_start(cfg: PretrainConfig) -> dict[str, Any]:
    """Return the method's section without what happens in the first epochs of a run."""
    options = cfg.method_options
    if not is_dataclass(options) or isinstance(options, type):
        return {}
    own = {name: value for name, value in START.items() if name in {item.name for item in fields(options)}}
    return {section_name(cfg.method): replace(options, **own)}


def load_finished(folder: Path, needed: tuple[str, ...]) -> tuple[checkpoint.State, checkpoint.State]:
    """Return the state and meta data at the end of a finished run. Raises InputError where there is none."""
    found = checkpoint.load_newest(folder / "checkpoints", needed=needed)
    total = length_of(folder, found[1]["videos"]) if found else 0
    if found is None or not total:
        raise InputError(f"after={folder} holds no run with checkpoints: name the folder of a finished run")
    if found[1]["step"] < total:
        raise InputError(
            f"the run in {folder} is not finished (step {found[1]['step']} of {total}): give its command without extend= first"
        )
    return found


def load_initial(cfg: PretrainConfig, method: Any, folder: Path) -> list[str]:
    """Load the weights of `cfg.init` before the first step and return lines on what matched; a begun run has its own."""
    if not cfg.init or cfg.after or checkpoint.checkpoints(folder / "checkpoints"):
        return []
    start: Any = importlib.import_module("sce_video.weights.start")  # only a run that begins so needs to read weights
    lines: list[str] = start.start_from_weights(
        method,
        cfg.init,
        cfg.model.backbone,
        key=cfg.weights.key,
        branch=cfg.weights.branch.value,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
    )
    return lines


def parameter_groups(cfg: PretrainConfig, method: Any) -> list[dict[str, Any]]:
    """Return the optimiser's groups; those of a backbone that `init` loaded have the rate's share `init_lr_scale`."""
    backbone, scale = method.online.backbone.parameters(), cfg.init_lr_scale if cfg.init else 1.0
    return optim.with_slower_part(method.parameters(), backbone, cfg.optim.weight_decay, scale)
