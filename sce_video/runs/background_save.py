"""Write checkpoints in a background thread, one at a time, from a copy on the CPU.

A run survives a failed save, such as a full disk: the previous checkpoint is intact, and the next save is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import Stopped
from . import checkpoint

ALLOWED_FAILURES = 3  # in a row


def snapshot(value: Any) -> Any:
    """Copy nested containers and their tensors to the CPU, where training does not change them.

    From a GPU the copies go to pinned memory and may still be under way: later work on the same stream comes after them, and
    whoever reads them waits for an event first.
    """
    if isinstance(value, Tensor):
        if value.is_cuda:
            return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item) for item in value)
    return value


def _check_and_save(folder: Path, step: int, state: checkpoint.State, meta: dict[str, Any], **options: int) -> Path:
    """Save a state that is finite; raise Stopped for another, which no later step can mend."""
    if bad := checkpoint.not_finite(state):
        raise Stopped(
            f"after step {step}, {len(bad)} tensors are not finite, e.g. {bad[0]}: training has diverged. This step is not "
            f"saved, and the checkpoints before it in {folder} are kept: lower optim.lr_per_256, or take a longer warm-up"
        )
    return checkpoint.save(folder, step, state, meta, **options)


class Saver:
    """Save in a thread. Leaving the context manager waits for the save in progress.

    keep, keep_every: see `checkpoint.save`. report: called with one line about each failed save.
    """

    def __init__(self, *, keep: int, keep_every: int, report: Callable[[str], None]) -> None:
        self.keep = keep
        self.keep_every = keep_every
        self.report = report
        self.failures = 0  # in a row
        self._pending: Future[Path] | None = None
        self._step = 0
        self._folder = Path()
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    def save(self, folder: Path, step: int, state: checkpoint.State, meta: dict[str, Any], *, keep: int = 0) -> None:
        """Copy `state` and write it in the background, after the save in progress. keep: overrides the number kept."""
        self.wait()
        self._folder, self._step = folder, step
        copied = snapshot(state)
        event = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if event:
            event.record()

        def write() -> Path:
            if event:
                event.synchronize()
            return _check_and_save(folder, step, copied, meta, keep=keep or self.keep, keep_every=self.keep_every)

        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Handle a finished save; called every step.

        Raises Stopped after ALLOWED_FAILURES failed saves in a row, and for a state that is not finite; any exception other
        than OSError at once.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress, if any, and handle its result as `check` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.failures = 0
        except OSError as error:
            self.failures += 1
            text = f"the checkpoint of step {self._step} could not be written: {error.strerror}{self._space()}"
            if self.failures >= ALLOWED_FAILURES:
                raise Stopped(f"{text}; that was number {self.failures} in a row") from error
            self.report(f"warning: {text}; training goes on, the checkpoint before it is whole")

    def finish(self) -> None:
        """Wait for the last checkpoint of a run. Raises Stopped if it could not be written: there is no further try."""
        self.wait()
        if self.failures:
            raise Stopped(
                f"the last checkpoint could not be written to {self._folder}{self._space()}: make room and give the same "
                "command again, it continues from the one before"
            )

    def _space(self) -> str:
        try:
            return f" ({shutil.disk_usage(self._folder).free / 1e6:.0f} MB free)"
        except OSError:
            return ""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
