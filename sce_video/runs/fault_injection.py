"""Inject faults, for tests. Nothing happens unless SCE_VIDEO_ALLOW_FAULTS=1.

    SCE_VIDEO_FAULT="kill@step=12,rank=1"      the rank kills itself before its step 12 (counted from 0)
                    "term@step=12,rank=1"      it is asked to stop
                    "stop@step=12,rank=1"      it stands still, as behind a dead link
                    "sleep@step=3,seconds=2"   it is late; without rank= all are
                    "nan@step=6,rank=1"        its clips are not numbers
                    "drift@step=5,rank=1"      one element of its first floating-point buffer or parameter changes
                    "abort@row=3"              the process that decodes row 3 aborts
                    "hang@row=3"               it hangs
Several are separated by a semicolon.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import distributed


def planned(kind: str, **where: int) -> dict[str, str] | None:
    """Return the options of the fault `kind` if it is planned for this rank and step= or row=, else None."""
    if os.environ.get("SCE_VIDEO_ALLOW_FAULTS") != "1":
        return None
    for fault in os.environ.get("SCE_VIDEO_FAULT", "").split(";"):
        name, _, text = fault.partition("@")
        options = dict(option.split("=", 1) for option in text.split(",") if option)
        here = {"rank": int(os.environ.get("RANK", distributed.rank())), **where}
        if name == kind and all(int(options[key]) == value for key, value in here.items() if key in options):
            return options
    return None


def at_step(step: int, module: nn.Module) -> None:
    """Inject the faults planned for this rank before `step`."""
    if planned("kill", step=step) is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    if planned("term", step=step) is not None:
        os.kill(os.getpid(), signal.SIGTERM)
    if planned("stop", step=step) is not None:
        os.kill(os.getpid(), signal.SIGSTOP)
    if (late := planned("sleep", step=step)) is not None:
        time.sleep(float(late["seconds"]))
    if planned("drift", step=step) is not None:
        next(value for value in module.state_dict().values() if value.is_floating_point()).view(-1)[0] += 1e-3


def poisoned(views: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return the clips of a step, all NaN where that fault is planned."""
    if planned("nan", step=step) is None:
        return list(views)
    return [torch.full_like(view, torch.nan) for view in views]


def in_worker(row: int) -> None:
    """Inject the faults planned for the process that decodes `row`."""
    if planned("abort", row=row) is not None:
        os.abort()
    while planned("hang", row=row) is not None:
        time.sleep(1)
