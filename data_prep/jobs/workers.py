"""Run a function over files in worker processes that may hang or crash; every file gets a result or a Failure.

Decoders are native code: some files make them loop for ever or abort the process, which Python cannot catch. A worker
without a sign of life for some seconds is killed and replaced, and so is one that died. A file whose worker died is tried
once more, because a machine short of memory kills other processes too.

`sce_video.data.workers` has another job and stays apart: it keeps the order of the batches, prefetches tensors through
torch's DataLoader, and replaces a bad video instead of reporting it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from sce_video.errors import log
from sce_video.runs.stop import die_with_parent

START_SECONDS = 120.0  # for a worker to start: its imports may come over a slow network
MEMORY_BYTES = 4 << 30  # of address space that a worker may allocate after its start

Alive = Callable[[], None]


class Failure(NamedTuple):
    """The reason why there is no result; kind is `hang` or `crash`."""

    kind: str
    reason: str


class _Worker:
    def __init__(self, function: Callable[[Any, Alive], Any], environment: Any) -> None:
        self.connection, other = environment.Pipe()
        self.process = environment.Process(target=_serve, args=(other, function, os.getpid()), daemon=True)
        self.process.start()
        other.close()
        self.task: Any = None
        self.deadline = time.monotonic() + START_SECONDS
        self.started = False

    def stop(self) -> int:
        """Kill the process and return its exit code, -9 if it was alive."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        return int(self.process.exitcode or 0)


def in_workers(
    function: Callable[[Any, Alive], Any], tasks: Iterable[Any], *, jobs: int, silence_seconds: float
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result or Failure) for every task, in the order of completion.

    function: importable; a worker calls it with a task and `alive`, which it calls while it makes progress. Tasks and results
    must be picklable. An OSError of the function, such as a full disk, is raised here and ends all workers.
    silence_seconds: seconds without a call of `alive` after which a worker counts as hanging.
    """
    environment = multiprocessing.get_context("spawn")
    left, again = deque(tasks), set[int]()
    workers = [_Worker(function, environment) for _ in range(min(jobs, len(left)))]
    try:
        while left or any(worker.task is not None for worker in workers):
            for worker in workers:
                if worker.task is None and left and worker.started:
                    worker.task, worker.deadline = left.popleft(), time.monotonic() + silence_seconds
                    _send(worker)
            busy = [worker for worker in workers if worker.task is not None or not worker.started]
            nearest = min((worker.deadline for worker in busy), default=time.monotonic())
            ready = wait([worker.connection for worker in busy], max(nearest - time.monotonic(), 0))
            for worker in busy:
                answer = _answer(worker, worker.connection in ready, silence_seconds)
                if answer is None:
                    continue
                task, worker.task = worker.task, None
                if isinstance(answer, Failure):
                    workers[workers.index(worker)] = _Worker(function, environment)
                    if task is None:
                        raise RuntimeError(f"a worker did not start: {answer.reason}")
                    if answer.kind == "crash" and id(task) not in again:
                        again.add(id(task))
                        left.appendleft(task)
                        continue
                yield task, answer
    finally:
        for worker in workers:
            worker.stop()


def with_progress(answers: Iterable[tuple[Any, Any]], total: int) -> Iterator[tuple[Any, Any]]:
    """Yield the items of `in_workers` and print the progress to stderr every ten seconds."""
    begun = said = time.monotonic()
    for done, answer in enumerate(answers, start=1):
        yield answer
        if time.monotonic() - said > 10:
            said = time.monotonic()
            rate = done / (said - begun)
            left = (total - done) / rate
            time_left = f"{left / 60:.0f} minutes" if left >= 60 else f"{left:.0f} seconds"
            log.info(f"{done} of {total} files, {rate:.1f} files/s, about {time_left} left")


def _send(worker: _Worker) -> None:
    with suppress(OSError):  # it died meanwhile; the next read detects that
        worker.connection.send(worker.task)


def _answer(worker: _Worker, is_ready: bool, silence_seconds: float) -> Any:
    """Return the result of a worker, a Failure, or None if there is no message yet."""
    if not is_ready:
        if time.monotonic() < worker.deadline:
            return None
        worker.stop()
        return Failure("hang", f"no progress for {silence_seconds:g} s")
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionError):
        code = worker.stop()
        return Failure("crash", f"the decoder crashed twice ({_describe(code)})")
    worker.deadline = time.monotonic() + silence_seconds
    worker.started = True
    if kind == "stop":
        raise OSError(*value)
    return value if kind == "result" else None


def _describe(code: int) -> str:
    names = {item.value: item.name for item in signal.Signals}
    return f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"


def _serve(connection: Connection, function: Callable[[Any, Alive], Any], parent: int) -> None:
    """Process tasks until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends its workers
    die_with_parent(signal.SIGKILL, parent)
    _limit_memory()
    said = time.monotonic()

    def alive() -> None:
        nonlocal said
        if time.monotonic() - said > 0.5:
            said = time.monotonic()
            connection.send(("alive", None))

    connection.send(("alive", None))
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            connection.send(("result", function(task, alive)))
        except OSError as error:
            connection.send(("stop", (error.errno, error.strerror, error.filename)))


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            own = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = own + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
