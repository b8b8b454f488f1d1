"""The rows of each training step as a pure function of (seed, step), and the loader over them.

Epoch e is a permutation of all rows drawn from (seed, e). Steps take consecutive global batches of it; the rows left over
at the end are dropped. Rank r takes the r-th contiguous block of a global batch, so that gathering over ranks gives the
order of a single process. Resuming at a step needs no state and decodes nothing of earlier steps.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from .. import distributed
from ..errors import InputError, log
from ..models.named import is_named
from ..randomness import generator
from . import health, manifest, mixture, synthetic
from .dataset import ClipDataset
from .decode import DecodeError, open_row
from .manifest import Video
from .workers import Batches, Quarantine

BUILT_IN = ("synthetic", "synthetic_images")  # sources other than files
READABLE_TRIES = 32
OPEN_SECONDS = 20  # for one file
HANGS = 3  # if the first files all hang, no other is tried


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_rows: int) -> list[int]:
    """Return the permutation of all rows for an epoch."""
    order: list[int] = torch.randperm(num_rows, generator=generator(seed, "order", epoch)).tolist()
    return order


def step_keys(
    seed: int, step: int, *, num_rows: int, batch: int, sources: tuple[mixture.Source, ...] = ()
) -> list[tuple[int, int]]:
    """Return the (epoch, row) pairs of the global batch of a step; of a mixture, the epoch is the pass over the row's list."""
    epoch, position = divmod(step, num_rows // batch)
    part = slice(position * batch, (position + 1) * batch)
    if sources:
        return mixture.epoch_order(seed, epoch, sources)[part]
    return [(epoch, row) for row in epoch_order(seed, epoch, num_rows)[part]]


def check_batch(num_videos: int, batch: int, accumulate: int, world_size: int, more: str = "") -> None:
    """Raise InputError unless the global batch fits the data and divides into the processes' micro-batches.

    more: what else would help against too few videos.
    """
    if batch > num_videos:
        raise InputError(f"optim.batch ({batch}) is larger than the data ({num_videos} videos): lower it{more}")
    if batch % (world_size * accumulate):
        raise InputError(
            f"optim.batch ({batch}) must be divisible by processes ({world_size}) x optim.accumulate "
            f"({accumulate}) = {world_size * accumulate}"
        )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Micro-batches of (epoch, row) of one rank for the steps [start_step, total_steps), `accumulate` per step."""

    def __init__(
        self,
        *,
        seed: int,
        num_rows: int,
        batch: int,
        accumulate: int,
        rank: int,
        world_size: int,
        start_step: int,
        total_steps: int,
        sources: tuple[mixture.Source, ...] = (),
    ) -> None:
        check_batch(num_rows, batch, accumulate, world_size)
        self.sources = sources
        self.seed = seed
        self.num_rows = num_rows
        self.batch = batch
        self.accumulate = accumulate
        self.rank = rank
        self.local = batch // world_size
        self.start_step = start_step
        self.total_steps = total_steps

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.total_steps):
            keys = step_keys(self.seed, step, num_rows=self.num_rows, batch=self.batch, sources=self.sources)
            block = keys[self.rank * self.local : (self.rank + 1) * self.local]
            size = self.local // self.accumulate
            for start in range(0, self.local, size):
                yield block[start : start + size]


def steps(
    num_rows: int,
    seed: int,
    batch: int,
    accumulate: int,
    start_step: int,
    total_steps: int,
    sources: tuple[mixture.Source, ...] = (),
) -> StepSampler:
    """Return this rank's sampler for the steps [start_step, total_steps)."""
    return StepSampler(
        seed=seed,
        num_rows=num_rows,
        batch=batch,
        accumulate=accumulate,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start_step,
        total_steps=total_steps,
        sources=sources,
    )


def read_videos(
    source: str, *, split: str, root: str = "", labels: str = "file", known_health: str = "none", training: bool = False
) -> list[Video]:
    """Read a manifest (see `data.manifest`), a data set of one's own (`file.py:Name`, see `sources.own`), or the built-in
    videos or images of `split` (train, val) for a source of BUILT_IN.

    One process per machine makes them on first use. known_health: the doctor's table, see `health.find`.
    Training drops the videos that it lists as bad; evaluation keeps unreadable ones with their status, counts them and
    never opens them. Raises InputError if no video remains.
    """
    if is_named(source) and not os.path.exists(source):
        own: Any = importlib.import_module(f"{__package__}.sources.own")  # loaded where it is used
        found: list[Video] = own.rows(source)
        return found
    if source not in BUILT_IN:
        videos = manifest.read(source, root or None, labels=labels)
        table = health.find(source, known_health)
        return videos if table is None else _apply_health(videos, table, training=training)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        synthetic.build(images=source == BUILT_IN[1], progress=_print_progress)
    distributed.barrier()
    return manifest.read(synthetic.build(images=source == BUILT_IN[1]) / f"{split}.csv")


def spread(videos: Sequence[Video], count: int) -> list[Video]:
    """Return at most `count` videos at equal distances in the list."""
    count = min(count, len(videos))
    return [videos[index * len(videos) // count] for index in range(count)]


def _apply_health(videos: list[Video], table: Path, *, training: bool) -> list[Video]:
    """Return the videos with their health as rank 0 reads it: a shared disk may look different to other ranks."""
    own = health.add_health(videos, table) if distributed.rank() == 0 else []
    (first, *_) = distributed.gather_objects([video.health for video in own])
    videos = [video._replace(health=known) for video, known in zip(videos, first, strict=True)]
    if distributed.rank() == 0:
        log.info(health.summarize(videos, table, dropped=training))
    kept = health.drop_bad(videos) if training else videos
    if not kept:
        raise InputError(f"{table} says that none of the {len(videos)} videos is sound, e.g. {videos[0].health}")
    return kept


def check_readable(videos: Sequence[Video], *, seed: int, decoder: str) -> None:
    """Raise InputError if none of up to 32 random videos opens; videos without a health status are tried first."""
    order = sorted(epoch_order(seed, 0, len(videos)), key=lambda row: videos[row].health != "")
    reasons: list[str] = []
    for video in (videos[row] for row in order[:READABLE_TRIES]):
        try:
            with openers() as pool:
                _look_up_seconds(pool, video, decoder)
            return
        except DecodeError as error:
            reasons.append(str(error))
        except multiprocessing.TimeoutError:
            reasons.append(hung(video, OPEN_SECONDS))
            if len(reasons) == HANGS:
                break
    raise InputError(
        f"none of {len(reasons)} videos tried (of {len(videos)}) can be read, e.g. {reasons[0]}; if the list's paths are "
        "relative to another folder, set data.root=..."
    )


def openers(processes: int = 1) -> Pool:
    """Return processes that open files which may hang or crash the decoder; leaving the block ends them."""
    return multiprocessing.Pool(processes, signal.signal, (signal.SIGTERM, signal.SIG_DFL))


def hung(video: Video, seconds: float) -> str:
    """Return the reason why a file was not opened within so many seconds."""
    return f"{video.path}: the decoder hung or crashed, it was not open after {seconds:.0f} s"


def _look_up_seconds(pool: Pool, video: Video, decoder: str) -> float:
    """Return the duration of a row, opened in one of `openers`.

    Raises DecodeError, and multiprocessing.TimeoutError where the file hangs or crashes the decoder.
    """
    return pool.apply_async(_seconds, (video, decoder)).get(OPEN_SECONDS)


def _seconds(video: Video, decoder: str) -> float:
    with open_row(video, decoder) as reader:
        return float(reader.seconds)


def sampled_hours(videos: Sequence[Video], decoder: str, sample: int = 16) -> float:
    """Return the hours of all videos as estimated from a few; 0 if none of those can be read."""
    seconds = []
    with openers() as pool:
        for video in spread(videos, sample):
            try:
                seconds.append(_look_up_seconds(pool, video, decoder))
            except DecodeError:
                continue
            except multiprocessing.TimeoutError:  # an estimate is not worth waiting for another one
                break
    return sum(seconds) / max(1, len(seconds)) * len(videos) / 3600


def _print_progress(done: int, total: int) -> None:
    if done == 1:
        log.info(f"making {total} demo videos in {synthetic.cache_folder()} (once, about a minute)")
    elif done % 256 == 0 or done == total:
        log.info(f"  {done}/{total}")


def share_cores(device: torch.device, workers: int) -> int:
    """Return the number of decoding workers: `workers`, or for -1 the default for this process's share of the cores.

    With a GPU one or two cores are left to the training process, the others decode. On a CPU half of the cores decode and
    torch gets the rest as threads: more threads than free cores wait for each other in every operation (measured 6 times
    slower on 2 cores). The number of threads does not depend on `workers`, so neither do results. OMP_NUM_THREADS, if set, is
    kept.
    """
    cores = own_cores()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores - cores // 2))
    return workers if workers >= 0 else default_workers(cores, device.type)


def default_workers(cores: int, device: str) -> int:
    """Return the decoding workers of a process with so many cores: beside a GPU all but one or two, on a CPU half."""
    if device == "cuda":
        return max(1, cores - (2 if cores > 8 else 1))
    return max(1, cores // 2)


def own_cores() -> int:
    """Return this process's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def build(
    dataset: ClipDataset,
    sampler: StepSampler,
    *,
    workers: int,
    pin_memory: bool,
    read_timeout: float = 60.0,
    worker_videos: int = 0,
    quarantine: Path | None = None,
) -> Batches:
    """Return the loader of the sampler's micro-batches, in its order for any number of workers; see `workers.Batches`.

    worker_videos: videos that a worker reads before it is replaced; 0: never. quarantine: path of `workers.Quarantine`.
    """
    micro_batch = sampler.local // sampler.accumulate
    return Batches(
        dataset,
        sampler,
        workers=workers,
        pin_memory=pin_memory,
        read_timeout=read_timeout,
        recycle=math.ceil(worker_videos * workers / micro_batch),
        quarantine=Quarantine(quarantine),
    )
