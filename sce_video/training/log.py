"""The log of a run: a progress bar or plain lines, `log.jsonl` with every figure, TensorBoard if it is installed.

Only rank 0 logs. The records of log.jsonl are {"step", "epoch", "time", "elapsed_s", ...}: time of day, and seconds of
training in all starts; after a resume the records of steps that are trained again are dropped, so the file reads as if the run
had never stopped. Lines come with the records, at the first step, and every LINE_SECONDS; log.txt keeps them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from .. import distributed
from ..augment import Channels, unnormalize
from ..errors import Stopped, log, printable
from ..evaluation import pictures
from ..runs import resources
from ..runs.files import AppendFile, read_rows, write_atomically, write_rows
from ..runs.status import now

CURVES_SECONDS = 60.0  # between two drawings of curves.png at least
COUNTS = ("eval/videos_read", "eval/videos_listed", "eval/pairs", "eval/feature_spread", "eval/effective_rank")  # no shares
LINE_SECONDS = 15.0  # between two lines at most, while steps end
SHOWN_VIDEOS = 4  # in views.png
ESTIMATE_STEPS = 10  # after which the duration of a run is estimated

T = TypeVar("T")


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes >= 60 * 24:
        return f"{minutes // 1440}d{minutes // 60 % 24:02d}h"
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{int(seconds) % 60:02d}s"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log.jsonl, without a line that a kill has cut off."""
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


class SkippedVideos:
    """Counts unreadable videos, lists them in `skipped_videos.csv`, and stops the run if there are too many.

    folder: the run folder; an earlier part of the run may have begun the file; only rank 0 writes (`write`).
    """

    def __init__(self, folder: Path, num_videos: int, max_fraction: float) -> None:
        self.path = folder / "skipped_videos.csv"
        self.num_videos = num_videos
        self.max_fraction = max_fraction
        self.reasons: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._noted: list[tuple[str, str]] = []
        for row in read_rows(self.path):
            self.reasons[row["path"]] = row["reason"]
            self.counts[row["path"]] = int(row["count"])

    def add(self, failures: Iterable[tuple[str, str]], *, write: bool) -> list[str]:
        """Count (path, reason) pairs of all ranks and return the reasons of videos not met before.

        Raises Stopped when more than max_fraction of the videos are unreadable.
        """
        new = []
        failures = [(printable(path), printable(reason)) for path, reason in failures]
        for path, reason in failures:
            if path not in self.reasons:
                new.append(reason)
            self.reasons[path] = reason
            self.counts[path] += 1
        if failures and write:
            self._write()
        if len(self.reasons) > self.max_fraction * self.num_videos:
            raise Stopped(
                f"{len(self.reasons)} of {self.num_videos} videos could not be read, more than data.max_bad_fraction "
                f"({self.max_fraction:g}) allows; they are listed in {self.path}, e.g. {next(iter(self.reasons.values()))}"
            )
        return new

    def _write(self) -> None:
        rows = ((path, self.counts[path], reason) for path, reason in self.reasons.items())
        try:
            write_rows(self.path, ("path", "count", "reason"), rows)
        except OSError as error:  # a full disk; the next unreadable video writes all of them again
            distributed.warn([f"{self.path} cannot be written: {error.strerror}"])

    def note(self, failures: Iterable[tuple[str, str]]) -> None:
        """Collect this rank's unreadable videos until the next `report`."""
        self._noted += failures

    def report(self, log: RunLog, *, now: bool) -> None:
        """Count the unreadable videos of all ranks and log the new ones; several ranks do it only if `now`, all at once."""
        if not now and distributed.active():
            return
        everywhere = [failure for share in distributed.gather_objects(self._noted) for failure in share]
        self._noted = []
        for reason in self.add(everywhere, write=distributed.rank() == 0):
            log.message(f"replaced an unreadable video ({len(self.reasons)} so far): {reason}")


class RunLog:
    """The log of one run.

    Args:
        folder: the run folder; None logs nothing (ranks other than 0).
        start_step, total_steps, steps_per_epoch: where the run stands.
        clips_per_step: of all ranks and views, small ones too, for the rate.
        every: steps between two records.
        processes: for the rate per process.
        taken: returns a line on the rows of an epoch (from 0), for its end.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        clips_per_step: int,
        every: int,
        processes: int,
        taken: Callable[[int], str] | None = None,
    ) -> None:
        self.folder = folder
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.clips_per_step = clips_per_step
        self.every = every
        self.processes = processes
        self.taken = taken
        self._bar: tqdm[Any] | None = None
        self._board: Any = None
        self.start_step, self._elapsed = start_step, 0.0
        self._started = self._last_line = self._drawn = time.perf_counter()
        self.restart_clock(start_step)
        if folder is None:
            return
        self._drop_after(start_step)
        self._messages, self._records = AppendFile(folder / "log.txt"), AppendFile(folder / "log.jsonl")
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tb"), purge_step=start_step + 1)  # type: ignore[no-untyped-call]
        if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:  # some terminals have no size: lines
            self._bar = tqdm(
                total=total_steps, initial=start_step, dynamic_ncols=True, bar_format="{percentage:3.0f}%|{bar:16}| {desc}"
            )

    def restart_clock(self, step: int) -> None:
        """Restart the measurement of speed and waiting, e.g. after an evaluation."""
        self._since, self._since_step, self._waited = time.perf_counter(), step, 0.0

    def _drop_after(self, step: int) -> None:
        assert self.folder is not None
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        kept = [record for record in _records(path) if 0 < step >= record.get("step", 0)]  # without checkpoint it begins anew
        self._elapsed = float(kept[-1].get("elapsed_s", 0.0)) if kept else 0.0
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))

    def message(self, text: str) -> None:
        """Print a line above the progress bar and keep it in log.txt."""
        if self.folder is None:
            return
        log.info(text)
        self._messages.add(printable(text))

    def due(self, step: int) -> bool:
        """Return whether `step` (counted from 1) is logged; reading figures waits for the device, so do it only then."""
        return step % self.every == 0 or step == self.total_steps

    def fetch(self, batches: Iterator[T]) -> T:
        """Return the next batch and add the time spent waiting for it."""
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        return batch

    def progress(self, step: int, loss: float, lr: float) -> None:
        """Move the bar after step `step` (counted from 1); print a line at the first one and where the last one is old."""
        if self.folder is None:
            return
        text = self._line(step, loss, f"lr {lr:.2e}")
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        if not self.due(step):  # else `step` prints a line
            first = step == self.start_step + 1
            if first or time.perf_counter() - self._last_line > LINE_SECONDS:
                self._keep(text)
            if first:
                self.restart_clock(step)  # it waited for the workers to start
        if self.taken and step % self.steps_per_epoch == 0:
            self.message(self.taken(step // self.steps_per_epoch - 1))
        if step == self.start_step + ESTIMATE_STEPS < self.total_steps:
            rate, wait, left = self._speed(step)
            memory = f"{resources.used()['rss_mb'] / 1e3:.1f} GB of memory in use"
            if torch.cuda.is_available():
                memory += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU's at most"
            self.message(f"estimate after {ESTIMATE_STEPS} steps: {left} to go, {wait:.0f} % of it waiting for data; {memory}")

    def _speed(self, step: int) -> tuple[float, float, str]:
        """Return clips per second, percent of time waited for data, and the time left, since the clock was restarted."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        steps = max(step - self._since_step, 1)
        left = _duration(seconds / steps * (self.total_steps - step))
        return self.clips_per_step * steps / seconds, 100 * self._waited / seconds, left

    def _line(self, step: int, loss: float, more: str, memory: float = 0.0) -> str:
        rate, wait, left = self._speed(step)
        epochs = self.total_steps // self.steps_per_epoch
        epoch = min((step - 1) // self.steps_per_epoch, epochs - 1) + 1
        return (
            f"ep {epoch}/{epochs} it {(step - 1) % self.steps_per_epoch + 1}/{self.steps_per_epoch} | loss {loss:.4f} | {more}"
            f" | {rate:.0f} clips/s ({rate / self.processes:.0f}/proc) | data {wait:.0f}%"
            + (f" | mem {memory:.1f}G" if memory else "")
            + f" | ETA {left}"
        )

    def _keep(self, line: str) -> None:
        """Print a line unless the bar shows it, and keep it in log.txt."""
        self._last_line = time.perf_counter()
        self._messages.add(line)
        if self._bar is None:
            log.info(line)

    def step(self, step: int, figures: dict[str, float], *, lr: float) -> None:
        """Log step `step` (counted from 1): figures, learning rate, speed, share of time waited for data, time left."""
        if self.folder is None:
            return
        rate, wait, _ = self._speed(step)
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        momentum = f" m {figures['ema_momentum']:.4f}" if "ema_momentum" in figures else ""
        self._keep(self._line(step, figures["loss"], f"lr {lr:.2e}{momentum}", memory))
        self.restart_clock(step)
        if time.perf_counter() - self._drawn > CURVES_SECONDS:
            self._draw_curves()
        self._record(
            step,
            {**{f"train/{name}": value for name, value in figures.items()}, "train/lr": lr},
            {
                "perf/clips_per_s": rate,
                "perf/data_wait_pct": wait,
                "perf/gpu_mem_gb": memory,
                **{f"perf/{name}": value for name, value in resources.used().items()},
            },
        )

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Log figures of an evaluation after `step` steps."""
        if self.folder is not None:
            self._record(step, {f"eval/{name}": value for name, value in figures.items()}, {})
            self._draw_curves()

    def _draw_curves(self) -> None:
        """Write curves.png from the records so far."""
        assert self.folder is not None
        self._drawn = time.perf_counter()
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in _records(self.folder / "log.jsonl"):
            for name, value in record.items():
                if name.startswith(("train/", "eval/")):
                    found[name].append((record["step"], value))
        scores = {name[5:]: line for name, line in found.items() if name.startswith("eval/") and name not in COUNTS}
        spread = {"keys": found["train/feature_std"], "features": found["eval/feature_spread"]}
        panels = {"loss": {"training": found["train/loss"]}, "learning rate": {"": found["train/lr"]}}
        panels |= {"scores, 0 to 1": scores, "feature spread": {name: line for name, line in spread.items() if line}}
        pictures.save(pictures.curves(panels, "step"), self.folder / "curves.png")

    def _record(self, step: int, figures: dict[str, float], speed: dict[str, float]) -> None:
        assert self.folder is not None
        elapsed = self._elapsed + time.perf_counter() - self._started
        record: dict[str, Any] = {"step": step, "epoch": (step - 1) // self.steps_per_epoch + 1 if step else 0}
        record |= {"time": now(), "elapsed_s": round(elapsed, 1)}
        self._records.add(json.dumps({**record, **figures, **{k: round(v, 3) for k, v in speed.items()}}))
        try:
            for name, value in {**figures, **speed}.items() if self._board is not None else ():
                self._board.add_scalar(name, value, step)
        except OSError as error:  # what its own thread met, a full disk above all; the thread has ended
            self._board = None
            self.message(f"warning: TensorBoard's file cannot be written: {error.strerror}; it goes on with the next start")

    def close(self) -> None:
        """Flush and end the bar."""
        if self.folder is not None and (self.folder / "log.jsonl").exists():
            self._draw_curves()
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            with suppress(OSError):  # see _record
                self._board.close()


def draw_views(path: Path, mean: Channels, std: Channels, views: Sequence[Tensor], paths: Sequence[str]) -> None:
    """Write a picture of the views of the first videos of a batch, as the network gets them."""
    shown = [unnormalize(view[:SHOWN_VIDEOS], mean, std) for view in views]
    pictures.save(pictures.views(shown, paths[:SHOWN_VIDEOS]), path)
