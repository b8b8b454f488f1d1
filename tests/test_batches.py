"""Workers crash, hang, are killed or replaced, and the batches equal those of a run without failures."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from pathlib import Path

import pytest
from conftest import ROOT, TINY_RECIPE
from test_dataset import dataset, flat, sampler

from sce_video.data import loader, manifest
from sce_video.data import workers as module
from sce_video.data.dataset import Batch
from sce_video.data.workers import Quarantine
from sce_video.errors import InputError, Stopped
from sce_video.runs import resources


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.3)


def by_row(found: list[Batch]) -> dict[tuple[int, int], tuple[int, bytes]]:
    """(epoch, row) -> the row whose video was read, and its clips."""
    samples = {}
    for batch in found:
        clips = [view.unpack() for view in batch.views]
        for place, key in enumerate(zip(batch.epochs, batch.rows, strict=True)):
            content = b"".join(view[place].contiguous().numpy().tobytes() for view in clips)
            samples[key] = (batch.sources[place], content)
    return samples


def test_crash_and_hang_are_survived_and_the_culprits_quarantined(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 3 aborts the process that reads it, row 7 hangs it: they are replaced, and nothing else changes."""
    expected = by_row(list(loader.build(dataset(videos), sampler(total_steps=3), workers=2, pin_memory=False)))
    monkeypatch.setenv("SCE_VIDEO_FAULT", "abort@row=3;hang@row=7")
    assert by_row(list(loader.build(dataset(videos), sampler(total_steps=3), workers=2, pin_memory=False))) == expected
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    file = tmp_path / "quarantine.jsonl"
    began = time.monotonic()
    with loader.build(
        dataset(videos), sampler(total_steps=3), workers=2, pin_memory=False, read_timeout=1.5, quarantine=file
    ) as iterator:
        batches = list(iterator)
    assert time.monotonic() - began < 40
    found = by_row(batches)
    assert found.keys() == expected.keys(), "every sample once"
    assert {key for key in found if found[key][0] != key[1]} == {(0, 3), (0, 7)}
    assert all(found[key] == expected[key] for key in found if key[1] not in (3, 7))
    paths = [video.path for video in manifest.read(videos / "train.csv")]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {record["path"]: record["reason"] for record in records} == {paths[3]: "signal 6", paths[7]: "timeout"}
    failures = {failure.path: failure.reason for batch in batches for failure in batch.failures}
    assert failures == {paths[3]: f"{paths[3]}: in quarantine (signal 6)", paths[7]: f"{paths[7]}: in quarantine (timeout)"}
    assert not multiprocessing.active_children()
    # A later start does not open them again: it would put them in quarantine a second time.
    again = loader.build(dataset(videos), sampler(total_steps=3), workers=1, pin_memory=False, quarantine=file)
    assert by_row(list(again)) == found
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.slow
def test_killed_process_is_replaced_and_its_video_is_not_to_blame(videos: Path) -> None:
    """SIGKILL, as by the kernel when memory runs out: only its second one at the same video quarantines the video."""
    expected = flat(list(loader.build(dataset(videos), sampler(), workers=0, pin_memory=False)))
    found = []
    with loader.build(dataset(videos), sampler(), workers=2, pin_memory=False) as iterator:
        for number, batch in enumerate(iterator):
            found.append(batch)
            if number in (1, 4):
                os.kill(iterator._processes()[0].pid, signal.SIGKILL)
        quarantined = iterator.quarantine.reasons
    assert flat(found) == expected
    assert quarantined == {}


@pytest.mark.slow
def test_processes_that_always_die_stop_the_run(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", "abort@")
    with (
        loader.build(dataset(videos), sampler(), workers=1, pin_memory=False) as iterator,
        pytest.raises(Stopped, match="decoding processes died 6 times without a batch between them"),
    ):
        next(iterator)


@pytest.mark.slow
def test_replacing_processes_changes_nothing(videos: Path) -> None:
    expected = flat(list(loader.build(dataset(videos), sampler(), workers=0, pin_memory=False)))
    pids = set()
    found = []
    with loader.build(dataset(videos), sampler(), workers=2, pin_memory=False, worker_videos=10) as iterator:
        for batch in iterator:
            found.append(batch)
            pids |= {process.pid for process in iterator._processes()}
    assert flat(found) == expected
    assert len(pids) == 8, "a batch for each of two processes, then ten videos each (in whole batches: three of 8 for both)"


@pytest.mark.slow
def test_slow_storage_is_not_a_fault(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every video takes longer than the polling interval, but less than read_timeout."""
    data = dataset(videos)
    views = data._read_views
    monkeypatch.setattr(data, "_read_views", lambda *arguments: (time.sleep(0.1), views(*arguments))[1])
    with loader.build(data, sampler(total_steps=2), workers=1, pin_memory=False, read_timeout=5) as iterator:
        assert len(list(iterator)) == 2
        assert iterator.quarantine.reasons == {}


@pytest.mark.slow
def test_process_that_hangs_does_not_outlive_the_run(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has time left to read, and ignores requests to end."""
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    rows = [row for _, row in list(sampler())[1]]
    monkeypatch.setenv("SCE_VIDEO_FAULT", f"hang@row={rows[0]}")
    with loader.build(dataset(videos), sampler(), workers=1, pin_memory=False, read_timeout=600) as iterator:
        next(iterator)
        time.sleep(1)  # it goes on reading ahead
        (process,) = iterator._processes()
        assert process.is_alive()
    assert not process.is_alive()
    assert not multiprocessing.active_children()


def test_memory_and_open_files_are_those_of_the_whole_tree(tmp_path: Path) -> None:
    before = resources.used()
    opened = f"[open({str(tmp_path / 'file')!r}, 'w') for _ in range(40)]"
    script = f"held, files = bytearray(50_000_000), {opened}; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = resources.used()
        child.communicate(b"\n")
    assert during["rss_mb"] - before["rss_mb"] > 50
    assert during["open_files"] - before["open_files"] >= 40


def test_undecodable_data_is_still_an_error(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    (tmp_path / "train.csv").write_text("path\n" + "".join(f"{name}.mp4\n" for name in "abcdefgh"))
    with (
        loader.build(dataset(tmp_path), sampler(num_rows=8, total_steps=1), workers=1, pin_memory=False) as iterator,
        pytest.raises(module.DecodeError, match="and 9 substitutes could not be read"),
    ):
        next(iterator)


def test_line_that_a_kill_cut_off_does_not_stop_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    Quarantine(path).add("a.mp4", "timeout")
    path.write_text(path.read_text() + '{"path": "b.m')
    Quarantine(path).add("c.mp4", "signal 6")
    assert Quarantine(path).reasons == {"a.mp4": "timeout", "c.mp4": "signal 6"}


def test_quarantine_keeps_odd_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff odd \n.mp4")
    Quarantine(tmp_path / "q.jsonl").add(name, "timeout")
    assert Quarantine(tmp_path / "q.jsonl").reasons == {name: "timeout"}


@pytest.mark.slow
def test_fifty_killed_processes_lose_no_run(videos: Path) -> None:
    """SIGKILL at random moments: while reading, sending, waiting, starting; the batches stay the same."""
    expected = flat(list(loader.build(dataset(videos), sampler(total_steps=12), workers=0, pin_memory=False)))
    rng, killed = random.Random(0), 0

    def kill_some(iterator: module.Batches, done: threading.Event) -> None:
        nonlocal killed
        while not done.is_set() and killed < 50:
            time.sleep(rng.uniform(0, 0.15))
            with suppress(IndexError, ProcessLookupError, AttributeError, TypeError):
                os.kill(rng.choice(iterator._processes()).pid, signal.SIGKILL)
                killed += 1

    while killed < 50:
        done = threading.Event()
        with loader.build(dataset(videos), sampler(total_steps=12), workers=2, pin_memory=False) as iterator:
            module_recoveries, iterator.recoveries = module.RECOVERIES, -1000  # here they die faster than they read
            killer = threading.Thread(target=kill_some, args=(iterator, done))
            killer.start()
            try:
                found = []
                for batch in iterator:
                    found.append(batch)
                    iterator.recoveries = -1000
                    time.sleep(0.02)
            finally:
                done.set()
                killer.join()
        assert [rows for rows, *_ in flat(found)] == [rows for rows, *_ in expected]
        assert module_recoveries == module.RECOVERIES


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer"), AuthenticationError()])
def test_connection_that_breaks_before_its_process_counts_as_dead_ends_no_run(videos: Path, error: Exception) -> None:
    expected = flat(list(loader.build(dataset(videos), sampler(total_steps=4), workers=0, pin_memory=False)))
    with loader.build(dataset(videos), sampler(total_steps=4), workers=1, pin_memory=False) as iterator:
        found = [next(iterator), next(iterator)]
        queue = iterator._iterator._data_queue

        def fail(timeout: float) -> None:
            threading.Timer(0.5, iterator._processes()[0].kill).start()
            raise error

        queue.get = fail
        found += list(iterator)
    assert flat(found) == expected


def test_process_that_was_stopped_between_two_reads_is_replaced(videos: Path) -> None:
    """Nothing is being read, so that no video is to blame."""
    expected = flat(list(loader.build(dataset(videos), sampler(total_steps=6), workers=0, pin_memory=False)))
    with loader.build(dataset(videos), sampler(total_steps=6), workers=1, pin_memory=False, read_timeout=1.5) as iterator:
        found = [next(iterator)]
        iterator._end()
        iterator._begin()
        (process,) = iterator._processes()
        os.kill(process.pid, signal.SIGSTOP)
        assert iterator._notes[0, 0] == -1 or iterator.quarantine.reasons == {}
        iterator._notes[0, 0] = -1
        found += list(iterator)
    assert flat(found) == expected
    assert iterator.quarantine.reasons == {}


def test_batches_in_flight_are_bounded_by_their_bytes(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loader.build(dataset(videos), sampler(), workers=2, pin_memory=False) as iterator:
        size = max(sum(view.pixels.nbytes for view in next(iterator).views) for _ in range(2))
        assert iterator._iterator._prefetch_factor == 1, "until the size of a batch is known"
        next(iterator)
        assert iterator._iterator._prefetch_factor == 4
        assert iterator._fit_prefetch(module.PREFETCH_BYTES // 5) == 2
        assert iterator._fit_prefetch(module.PREFETCH_BYTES // 2) == 1
        monkeypatch.setattr(module, "_free_memory", lambda: 3 * size)
        assert iterator._fit_prefetch(size) == 1
        monkeypatch.setattr(module, "_free_memory", lambda: size)
        with pytest.raises(InputError, match=r"/dev/shm has .* MB free; batches of .* --shm-size=.*system\.workers"):
            iterator._fit_prefetch(size)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a small /dev/shm")
@pytest.mark.parametrize("size", ["60k", "200k", "600k"])
def test_small_shared_memory_ends_the_run_with_one_line(videos: Path, tmp_path: Path, size: str) -> None:
    """60k: not even the locks fit; 200k: the first batch cannot be sent; 600k: it can, but not one for each worker."""
    program = [sys.executable, str(ROOT / "tools/pretrain.py"), "recipe=demo", *TINY_RECIPE, f"data.train={videos}/train.csv"]
    program += ["system.workers=4", "system.device=cpu", f"out={tmp_path}/run", "optim.epochs=400", "data.num_frames=8"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {shlex.join(program)}"
    ended = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, timeout=120)
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip("no mounts here")
    assert ended.returncode == 70, ended.stderr
    (last,) = [line for line in ended.stderr.splitlines() if line.startswith("error: /dev/shm has ")]
    assert "--shm-size=1g, or set fewer system.workers (0: none is needed)" in last
    assert size == "60k" or "Traceback" not in ended.stderr  # there, torch prints that it cannot clean up
