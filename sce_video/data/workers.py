"""A loader whose batches do not change when its workers crash, hang or leak memory.

Each worker records in shared memory the video that it reads and the start time. If a worker dies or exceeds the timeout,
its video is added to `quarantine.jsonl` and replaced like an unreadable one, and new workers continue at the next batch.
Samples are functions of (seed, epoch, row), so no other sample changes. Workers are also restarted after a number of
videos, because some libraries leak memory.

Batches travel through shared memory (/dev/shm), of which containers often have 64 MB. The first workers decode one batch
each; its size then bounds the batches in flight, and the run ends with one line where not even one per worker fits.
"""

from __future__ import annotations

import errno
import json
import math
import multiprocessing.queues
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from .. import distributed
from ..errors import InputError, Stopped, log
from ..runs import fault_injection
from ..runs.files import AppendFile
from ..runs.stop import SIGNALS, die_with_parent
from .dataset import Batch, ClipDataset, EvaluationDataset, Sample, collate
from .decode import DecodeError

STALL_SECONDS = 600  # longest wait for a batch: after it the storage counts as unavailable
POLL_SECONDS = 2  # interval of checks on the workers while waiting for a batch
RECOVERIES = 5  # restarts in a row without a batch between them
DEATH_SECONDS = 5  # the connection of a process that is killed closes that long before it counts as dead, at most
PREFETCH, PREFETCH_BYTES = 4, 2 << 30  # batches per worker that wait for training; bytes of all of them, per rank
SEND_FAILED = 74  # exit code of a worker that could not send a batch (EX_IOERR)
SHARED_MEMORY = "/dev/shm"
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
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_after_failed_send)  # type: ignore[attr-defined]


def _end_after_failed_send(error: BaseException, _: object) -> None:
    """End a worker that cannot send a batch: by default its thread only prints, and the batch never arrives."""
    if "No space left" not in str(error):  # the parent words that
        log.error(f"a decoding process cannot send a batch: {error}")
    os._exit(SEND_FAILED)


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


def _free_memory() -> float:
    """Return the free bytes of shared memory for this process's share of the machine; infinity where it has no folder."""
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return shutil.disk_usage(SHARED_MEMORY).free / share if os.path.isdir(SHARED_MEMORY) else math.inf


class _Watched(Dataset[Sample]):
    """Records in `notes` [workers, 3]: a worker's row (-1: none), since when, and the bytes of its largest batch."""

    def __init__(self, dataset: ClipDataset | EvaluationDataset, notes: Tensor, quarantined: dict[str, str]) -> None:
        self.dataset = dataset
        self.notes = notes
        self.quarantined = quarantined
        dataset.before_reading = self.note

    def note(self, row: int) -> None:
        path = self.dataset.videos[row].name
        if path in self.quarantined:
            raise DecodeError(f"{path}: in quarantine ({self.quarantined[path]})")
        if (worker := get_worker_info()) is not None:
            self.notes[worker.id, 0], self.notes[worker.id, 1] = row, time.monotonic()
            fault_injection.in_worker(row)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        batch = collate(samples)
        if (worker := get_worker_info()) is not None:
            size = float(sum(view.pixels.nbytes for view in batch.views))
            self.notes[worker.id, 2] = max(size, self.notes[worker.id, 2].item())
        return batch

    def __getitem__(self, index: Any) -> Sample:
        try:
            return self.dataset[index]
        finally:
            if (worker := get_worker_info()) is not None:
                self.notes[worker.id, 0], self.notes[worker.id, 1] = -1, time.monotonic()


class _Part(Sampler[Any]):
    """The batches [first, last) of another sampler."""

    def __init__(self, sampler: Sampler[Any], first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[Any]:
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
        dataset: ClipDataset | EvaluationDataset,
        sampler: Sampler[Any],  # yields the indices of a batch: (epoch, row) pairs, or rows for evaluation
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
        self._notes = torch.full((max(workers, 1), 3), -1.0, dtype=torch.float64).share_memory_()
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
            try:
                if self._iterator is None or self.done == self._last:
                    self._end()
                    self._begin()
                batch: Batch = next(self._iterator)
            except (RuntimeError, OSError, EOFError, multiprocessing.AuthenticationError) as error:
                if isinstance(error, DecodeError) or not self._mend(error, time.monotonic() - began):
                    raise
                continue
            self.done += 1
            self.recoveries = 0
            return batch

    def _begin(self) -> None:
        size = int(self._notes[:, 2].max())
        prefetch = self._fit_prefetch(size) if size > 0 else 1
        self._last = min(self.done + self.recycle, self.total)
        if self.workers and size < 0:
            self._last = min(self.done + self.workers, self._last)
        self._notes[:, 0], self._notes[:, 1] = -1, time.monotonic()
        loader: DataLoader[Batch] = DataLoader(
            self._watched,  # type: ignore[arg-type]  # Dataset's type allows no (epoch, row) index
            batch_sampler=_Part(self.sampler, self.done, self._last),
            collate_fn=self._watched.collate,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            worker_init_fn=prepare_worker if self.workers else None,
            timeout=POLL_SECONDS if self.workers else 0,
            prefetch_factor=prefetch if self.workers else None,
        )
        others = set(multiprocessing.active_children())
        try:
            self._iterator = iter(loader)
        except OSError as error:
            for process in set(multiprocessing.active_children()) - others:  # those that did start ignore requests to end
                process.kill()
            if error.errno == errno.ENOSPC:
                raise self._too_little_memory(max(size, 0)) from error
            raise
        if self.workers and threading.current_thread() is threading.main_thread():
            # torch's handler would raise in the middle of an optimiser step; __next__ detects dead workers instead.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _fit_prefetch(self, size: int) -> int:
        """Return the batches that each worker prepares, by their bytes. Raises InputError where one for each does not fit."""
        free = _free_memory()
        if size * self.workers > free:
            raise self._too_little_memory(size)
        return max(1, min(PREFETCH, int(min(PREFETCH_BYTES, free)) // (size * self.workers)))

    def _too_little_memory(self, size: int) -> InputError:
        total, _, free = (value / 1e6 for value in shutil.disk_usage(SHARED_MEMORY))
        processes = self.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return InputError(
            f"{SHARED_MEMORY} has {total:.0f} MB, {free:.0f} MB free; batches of {size / 1e6:.1f} MB from {processes} decoding "
            f"processes need {size * processes / 1e6:.0f} MB: start the container with "
            f"--shm-size={1 + 2 * size * processes // 10**9}g, or set fewer system.workers (0: none is needed)"
        )

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
        torn = bool(self.workers) and not isinstance(error, RuntimeError) and not str(error).startswith("Caught ")
        if torn:
            wait([process.sentinel for process in self._processes()], DEATH_SECONDS)
        guilty = self._find_guilty()
        dead = any(not process.is_alive() for process in self._processes())
        # Workers that read nothing and send nothing: stopped, or waiting for a lock that a dead one held.
        quiet = bool(self.workers) and time.monotonic() - self._notes[:, 1].max().item() > self.read_timeout < waited
        if not (guilty or dead or torn or quiet):  # all workers are alive, only slow
            return "timed out" in str(error) and waited < STALL_SECONDS
        for row, reason in guilty.items():
            self.quarantine.add(self._watched.dataset.videos[row].name, reason)
        self.recoveries += 1
        if self.recoveries > RECOVERIES:
            raise Stopped(
                f"decoding processes died {self.recoveries} times without a batch between them, last of {guilty or error}: "
                "is memory short? (system.workers=1 needs the least)"
            ) from error
        self._end(at_once=True)
        return True

    def _find_guilty(self) -> dict[int, str]:
        """Return the rows that dead workers were reading, with the reason, and those of hung ones, which are killed."""
        guilty: dict[int, str] = {}
        for number, process in enumerate(self._processes()):
            row, since = self._notes[number, :2].tolist()
            if not process.is_alive():
                size = int(self._notes[:, 2].max())
                if process.exitcode in (SEND_FAILED, -signal.SIGBUS) and _free_memory() < size * self.workers:
                    raise self._too_little_memory(size)
                if row >= 0 and process.exitcode != SEND_FAILED and self._is_guilty(int(row), -(process.exitcode or 0)):
                    guilty[int(row)] = f"signal {-process.exitcode}" if process.exitcode < 0 else "exit"
            elif row >= 0 and time.monotonic() - since > self.read_timeout:
                guilty[int(row)] = "timeout"
                process.kill()
        return guilty

    def _is_guilty(self, row: int, number: int) -> bool:
        path = self._watched.dataset.videos[row].name
        self._deaths[path] += 1
        return number in OWN_FAULT or self._deaths[path] > 1

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
