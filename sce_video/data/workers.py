"""A loader whose batches do not change when its workers crash, hang or leak memory.

Each worker records in shared memory the video that it reads and the start time. If a worker dies or exceeds the timeout,
its video is added to `quarantine.jsonl` and replaced like an unreadable one, and new workers continue at the next batch.
Samples are functions of (seed, epoch, row), so no other sample changes. Workers are also restarted after a number of
videos, because some libraries leak memory.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from .. import distributed
from ..errors import Stopped
from ..runs import fault_injection
from ..runs.files import AppendFile
from ..runs.stop import SIGNALS, die_with_parent
from .dataset import Batch, ClipDataset, Sample, collate
from .decode import DecodeError

STALL_SECONDS = 600  # longest wait for a batch: after it the storage counts as unavailable
POLL_SECONDS = 2  # interval of checks on the workers while waiting for a batch
RECOVERIES = 5  # restarts in a row without a batch between them
# Signals that quarantine a video at once; others, such as the kernel's SIGKILL when memory runs out, when they recur.
OWN_FAULT = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def prepare_worker(_: int) -> None:
    """Initialise a worker: one thread, killed with its parent.

    It ignores stop signals, which torchrun and SLURM send to all processes: the parent handles them.
    """
    torch.set_num_threads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


class Quarantine:
    """Videos that crashed or hung a worker, with the reason, kept in a JSON lines file if a path is given.

    All ranks append to the same file. A later start reads it and does not open these videos again.
    """

    def __init__(self, path: Path | None) -> None:
        self.reasons: dict[str, str] = {}
        self._lines = None if path is None else AppendFile(path)
        if path is not None and path.is_file():
            for line in path.read_text().splitlines():
                with suppress(json.JSONDecodeError):  # a line truncated by a kill
                    record = json.loads(line)
                    self.reasons[record["path"]] = record["reason"]

    def add(self, path: str, reason: str) -> None:
        """Add a video to the list and to the file."""
        self.reasons[path] = reason
        if self._lines is not None:
            record = {"path": path, "reason": reason, "rank": distributed.rank(), "host": socket.gethostname()}
            self._lines.add(json.dumps(record))


class _Watched(Dataset[Sample]):
    """Records in `notes` [workers, 2] each worker's current row (-1: none) and the time at which it began to read it."""

    def __init__(self, dataset: ClipDataset, notes: Tensor, quarantined: dict[str, str]) -> None:
        self.dataset = dataset
        self.notes = notes
        self.quarantined = quarantined
        dataset.before_reading = self.note

    def note(self, row: int) -> None:
        path = self.dataset.videos[row].path
        if path in self.quarantined:
            raise DecodeError(f"{path}: in quarantine ({self.quarantined[path]})")
        if (worker := get_worker_info()) is not None:
            self.notes[worker.id, 0], self.notes[worker.id, 1] = row, time.monotonic()
            fault_injection.in_worker(row)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        try:
            return self.dataset[index]
        finally:
            if (worker := get_worker_info()) is not None:
                self.notes[worker.id, 0] = -1


class _Part(Sampler[list[tuple[int, int]]]):
    """The batches [first, last) of another sampler."""

    def __init__(self, sampler: Sampler[list[tuple[int, int]]], first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return islice(iter(self.sampler), self.first, self.last)


class Batches:
    """An iterator over all batches of a sampler, and a context manager that ends the workers.

    Args:
        dataset, sampler: the samples and their order.
        workers: number of decoding processes; 0 decodes in this process, without protection from crashes and hangs.
        read_timeout: maximum seconds per video.
        recycle: number of batches after which the workers are replaced; 0: never.
        quarantine: see `Quarantine`.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: Sampler[list[tuple[int, int]]],
        *,
        workers: int,
        pin_memory: bool,
        read_timeout: float,
        recycle: int,
        quarantine: Quarantine,
    ) -> None:
        self.sampler = sampler
        self.total = len(sampler)  # type: ignore[arg-type]
        self.workers = workers
        self.pin_memory = pin_memory
        self.read_timeout = read_timeout
        self.recycle = recycle or self.total
        self.quarantine = quarantine
        self.done = 0
        self.recoveries = 0  # since the last batch
        self._deaths: Counter[str] = Counter()
        self._notes = torch.full((max(workers, 1), 2), -1.0, dtype=torch.float64).share_memory_()
        self._watched = _Watched(dataset, self._notes, quarantine.reasons)
        self._iterator: Any = None
        self._last = 0  # the current workers end before this batch

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self.done == self.total:
            self._end()
            raise StopIteration
        began = time.monotonic()
        while True:
            if self._iterator is None or self.done == self._last:
                self._end()
                self._begin()
            try:
                batch: Batch = next(self._iterator)
            except (RuntimeError, OSError, EOFError) as error:
                if isinstance(error, DecodeError) or not self._mend(error, time.monotonic() - began):
                    raise
                continue
            self.done += 1
            self.recoveries = 0
            return batch

    def _begin(self) -> None:
        self._last = min(self.done + self.recycle, self.total)
        self._notes[:, 0] = -1
        loader: DataLoader[Batch] = DataLoader(
            self._watched,  # type: ignore[arg-type]  # Dataset's type allows no (epoch, row) index
            batch_sampler=_Part(self.sampler, self.done, self._last),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=prepare_worker if self.workers else None,
            timeout=POLL_SECONDS if self.workers else 0,
            prefetch_factor=4 if self.workers else None,
        )
        self._iterator = iter(loader)
        if self.workers and threading.current_thread() is threading.main_thread():
            # torch's handler would raise in the middle of an optimiser step; __next__ detects dead workers instead.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _processes(self) -> Sequence[Any]:
        return self._iterator._workers if self.workers and self._iterator is not None else []

    def _end(self, *, at_once: bool = False) -> None:
        """End the workers: by request, then SIGKILL; at_once: by SIGKILL, as a dead one may hold a shared lock."""
        for process in self._processes() if at_once else ():
            process.kill()
        if self._processes():
            self._iterator._shutdown_workers()  # waits 5 s for each, then sends SIGTERM, which workers ignore
            for process in self._processes():
                process.kill()
                process.join()
        self._iterator = None

    def _mend(self, error: Exception, waited: float) -> bool:
        """Quarantine the videos of dead and hung workers and end all; return whether to wait for the batch again."""
        now = time.monotonic()
        guilty: dict[int, str] = {}
        dead = False
        for number, process in enumerate(self._processes()):
            row, since = self._notes[number].tolist()
            if not process.is_alive():
                dead = True
                if row >= 0 and self._is_guilty(int(row), -(process.exitcode or 0)):
                    guilty[int(row)] = f"signal {-process.exitcode}" if process.exitcode < 0 else "exit"
            elif row >= 0 and now - since > self.read_timeout:
                guilty[int(row)] = "timeout"
                process.kill()
        if not guilty and not dead:  # all workers are alive, only slow
            return "timed out" in str(error) and waited < STALL_SECONDS
        for row, reason in guilty.items():
            self.quarantine.add(self._watched.dataset.videos[row].path, reason)
        self.recoveries += 1
        if self.recoveries > RECOVERIES:
            raise Stopped(
                f"decoding processes died {self.recoveries} times without a batch between them, last of {guilty or error}: "
                "is memory short? (system.workers=1 needs the least)"
            ) from error
        self._end(at_once=True)
        return True

    def _is_guilty(self, row: int, number: int) -> bool:
        path = self._watched.dataset.videos[row].path
        self._deaths[path] += 1
        return number in OWN_FAULT or self._deaths[path] > 1

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
