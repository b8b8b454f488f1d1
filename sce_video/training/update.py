"""Whether a step's update is made: decided from figures that all ranks share, before anything is changed.

A loss or gradient that is not finite on one rank is so on all of them after the reductions, so that all of them skip the
step: no optimiser step, no target update, no key enqueued, batch-norm statistics as before it, schedules not advanced.
A few such steps are survived; many mean that training has diverged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import distributed
from ..errors import Stopped
from ..runs.files import AppendFile

IN_A_ROW = 5  # so many skipped steps stop the run,
WINDOW, IN_WINDOW = 1000, 10  # and so does one more than 1 % of the last thousand
SKIPPED_STEPS = "skipped_steps.jsonl"


class Shared(NamedTuple):
    """The figures of a step that all ranks share: mean loss, norm of the reduced gradients, whether any rank was asked to stop.

    mine: whether this rank's own loss is finite.
    """

    loss: float
    gradient_norm: float
    stopping: bool
    mine: bool = True


def share(
    losses: Sequence[Tensor], module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, stop: bool
) -> Callable[[], Shared]:
    """Reduce the figures of a step over ranks; return a function that waits for them: the step's one wait for the device.

    losses: this rank's, one per micro-batch. stop: whether it was asked to stop; it travels with the loss. Between the call
    and the wait the next batch can be issued. Nothing is updated before the figures are known.
    """
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    local = torch.stack([loss.detach() for loss in losses]).mean()
    reduced = distributed.mean(torch.stack([local, torch.full_like(local, float(stop))]))
    norm = torch.nn.utils.get_total_norm(gradients).to(local.dtype)
    figures = torch.cat([reduced, norm[None], local[None]])
    on_gpu = figures.device.type == "cuda"
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True) if on_gpu else figures
    event = torch.cuda.Event() if on_gpu else None
    if event:
        host.copy_(figures, non_blocking=True)
        event.record()

    def read() -> Shared:
        if event:
            event.synchronize()
        loss, stopping, gradient_norm, own = host.tolist()
        return Shared(loss, gradient_norm, stopping > 0, math.isfinite(own))

    return read


class Updates:
    """The updates of a run: makes or skips each, and counts.

    folder: gets `skipped_steps.jsonl`. module: whose batch-norm statistics a skipped step must not change.
    """

    def __init__(self, folder: Path, module: nn.Module) -> None:
        self.lines = AppendFile(folder / SKIPPED_STEPS)
        self.skipped = 0
        self.in_a_row = 0
        self.recent: list[int] = []  # the skipped ones of the last WINDOW steps
        norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        by_type = [[b for b in buffers if b.dtype == dtype] for dtype in {buffer.dtype for buffer in buffers}]
        self._statistics = [(group, [torch.empty_like(buffer) for buffer in group]) for group in by_type]

    def state(self) -> dict[str, Any]:
        """Return the counts, for a checkpoint; `resume` takes them back."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "recent": self.recent}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue with the counts of a checkpoint."""
        self.skipped, self.in_a_row, self.recent = state["skipped"], state["in_a_row"], state["recent"]

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the batch-norm statistics; called before a step's first forward pass."""
        for group, kept in self._statistics:
            torch._foreach_copy_(kept, group)

    def make(
        self,
        shared: Shared,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        paths: Sequence[str],
        report: Callable[[str], None],
        *,
        step: int,
        lr: float,
    ) -> bool:
        """Make the optimiser's step and return True, or skip it and return False: the same on all ranks.

        paths: of this rank's batch. A gradient that overflows under fp16 is not counted: the scaler then lowers its scale,
        until it is below 1.

        Raises Stopped on all ranks when too many steps are skipped.
        """
        if math.isfinite(shared.loss) and math.isfinite(shared.gradient_norm):
            scaler.step(optimizer)
            scaler.update()
            self.in_a_row = 0
            return True
        with torch.no_grad():
            for group, kept in self._statistics:
                torch._foreach_copy_(group, kept)
        overflow = scaler.is_enabled() and math.isfinite(shared.loss) and scaler.get_scale() >= 1
        scaler.update()
        self.skipped += 1
        if not overflow:
            self._count(shared, paths, report, step, lr)
        return False

    def _count(self, shared: Shared, paths: Sequence[str], report: Callable[[str], None], step: int, lr: float) -> None:
        self.in_a_row += 1
        self.recent = [old for old in self.recent if old > step - WINDOW] + [step]
        guilty = [] if shared.mine and not math.isfinite(shared.loss) else list(paths)
        files = [path for share in distributed.gather_objects(guilty) for path in share]
        if distributed.rank() == 0:
            figures = {"loss": str(shared.loss), "gradient_norm": str(shared.gradient_norm)}
            self.lines.add(json.dumps({"step": step, "lr": lr, **figures, "files": files}))
        text = f"loss {shared.loss} and gradient norm {shared.gradient_norm} at step {step} (lr {lr:.3g})"
        if self.in_a_row < IN_A_ROW and len(self.recent) <= IN_WINDOW:
            report(f"skipped: {text}, {self.skipped} so far; the batch's files are in {SKIPPED_STEPS}")
            return
        often = f"{self.in_a_row} in a row" if self.in_a_row >= IN_A_ROW else f"{len(self.recent)} in {WINDOW} steps"
        raise Stopped(
            f"{text}, {often}: nothing was updated; the last checkpoint is good. Likely the learning rate is too high. "
            f"The batch's files: {', '.join(files)}"
        )
