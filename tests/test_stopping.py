"""A run that is asked to stop saves and says so; one that is killed leaves no processes behind; one folder, one run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY_RECIPE, compose_finetune, compose_pretrain, losses, run_tool
from test_finetune import TINY

from sce_video.errors import InputError, Preempted, Stopped
from sce_video.programs.finetune import finetune
from sce_video.programs.pretrain import pretrain
from sce_video.runs import checkpoint
from sce_video.runs import status as status_file
from sce_video.runs.folder import RunFolder
from sce_video.runs.lock import RunLock
from sce_video.runs.status import read_status
from sce_video.runs.stop import StopRequest

ALWAYS = ["optim.epochs=14", "system.save_every=1000"]


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", f"out={out}", *ALWAYS, *more]


def digest(folder: Path) -> str:
    return checkpoint.state_digest(checkpoint.load(checkpoint.find(folder))[0])


def steps_logged(folder: Path) -> int:
    path = folder / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 280) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def at_step(step: int, folder: Path, action: Callable[[], object]) -> threading.Thread:
    """Do something once a run in this very process has logged `step` steps of its present start."""

    def watch() -> None:
        wait_until(lambda: steps_logged(folder) >= step)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def straight(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 42 steps that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    pretrain(compose_pretrain(*options(videos, folder)))
    assert read_status(folder)["status"] == "completed"
    assert read_status(folder)["exit_code"] == 0
    return folder


def test_every_request_to_stop_saves_and_the_run_goes_on_exactly(straight: Path, videos: Path, tmp_path: Path) -> None:
    """SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and a file STOP, one after the other: the same weights as without them."""
    out = tmp_path / "run"
    cfg = compose_pretrain(*options(videos, out))
    requests: list[tuple[str, Callable[[], object]]] = [
        (number.name, lambda number=number: os.kill(os.getpid(), number))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    ]
    requests.append(("STOP", (out / "STOP").touch))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    saved = 0
    for restart, (name, ask) in enumerate(requests):
        thread = at_step(saved + 2, out, ask)
        with pytest.raises(Preempted, match=name):
            pretrain(cfg)
        thread.join()
        status = read_status(out)
        assert (status["status"], status["exit_code"], status["restarts"]) == ("preempted", 75, restart)
        assert name in status["reason"]
        assert status["start_step"] == saved
        assert saved + 2 <= status["step"] <= steps_logged(out), "at the end of the step it was in"
        assert checkpoint.find(out).name == f"step_{status['step']:08d}"
        saved = status["step"]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], "as they were before"
    assert (out / "STOP").exists()
    pretrain(cfg)  # STOP was meant for the run before
    assert not (out / "STOP").exists()
    assert read_status(out)["status"] == "completed"
    assert losses(out) == losses(straight)
    assert digest(out) == digest(straight)


def test_request_while_nothing_can_be_lost_stops_at_once(videos: Path, tmp_path: Path) -> None:
    """Without a step to end: a signal during set-up leaves no folder behind."""
    script = (
        "import os, signal, sys; sys.path.insert(0, 'tests')\n"
        "from sce_video.programs import pretrain as program; from sce_video.config.pretrain import PretrainConfig\n"
        "from sce_video.command_line import run_program\n"
        "def build(cfg): os.kill(os.getpid(), signal.SIGTERM); raise AssertionError('still here')\n"
        "run_program('pretrain', PretrainConfig, lambda cfg: program.pretrain(cfg, build))\n"
    )
    command = [sys.executable, "-c", script, *options(videos, tmp_path / "run")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 75, result.stderr
    assert result.stderr.strip() == "stopped: SIGTERM; the same command continues"
    assert not (tmp_path / "run").exists()


def test_failed_run_says_why(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="nothing was updated"):
        pretrain(compose_pretrain(*options(videos, out, "optim.lr_per_256=1e30")))
    status = read_status(out)
    assert (status["status"], status["exit_code"]) == ("failed", 70)
    assert "nothing was updated" in status["reason"]


def test_finetuning_on_splits_stops_as_one_program(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second split: the folder that was named says so, and the same command goes on there."""
    for split in (1, 2):
        shutil.copy(videos / "train.csv", tmp_path / f"train{split}.csv")
    out = tmp_path / "run"
    lists = [f"train={tmp_path}/train%.csv", f"test={videos / 'val.csv'}", f"root={videos}", "splits=[1,2]"]
    clips = ["data.num_frames=4", "data.clip_seconds=0.8", "augment.size=32"]
    cfg = compose_finetune("backbone=tiny3d", *lists, *clips, *TINY, "optim.epochs=1", f"out={out}")
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", "term@step=1")
    for split in (1, 2):
        with pytest.raises(Preempted, match="SIGTERM: saved at step 2"):
            finetune(cfg)
        assert read_status(out)["status"] == read_status(out / f"split_{split}")["status"] == "preempted"
        assert read_status(out)["step"] == split - 1, "splits done"
    assert read_status(out / "split_1")["status"] == "completed"
    (out / "STOP").touch()  # for an earlier start
    assert len(finetune(cfg)) == 2
    assert not (out / "STOP").exists()
    assert read_status(out)["status"] == read_status(out / "split_2")["status"] == "completed"


def processes_in(folder: Path) -> list[int]:
    """All processes, zombies apart, whose command line names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder) in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def start(videos: Path, out: Path, *more: str, agent: bool = True) -> subprocess.Popen[str]:
    """Start tools/pretrain.py on two ranks with a decoding process each."""
    command = [sys.executable]
    if agent:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "localhost:0", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR2"]
    command += [str(ROOT / "tools/pretrain.py"), *options(videos, out, "system.workers=1", *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_signals_and_death_of_the_agent_of_two_ranks(videos: Path, tmp_path: Path) -> None:
    """torchrun gets a signal or is killed, or a file STOP appears: each time both ranks save and leave, and none is left.

    torchrun passes SIGTERM on in the same way as SIGUSR2, which it only does when told to.
    """
    out = tmp_path / "run"
    saved = 0
    for number in (signal.SIGUSR2, signal.SIGKILL, None):
        process = start(videos, out)
        wait_until(lambda: steps_logged(out) >= saved + 2)  # noqa: B023
        if number is None:
            (out / "STOP").touch()
        else:
            os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
        wait_until(lambda: not processes_in(out), 10)  # after SIGKILL nobody waits for the ranks
        status = read_status(out)
        assert status["status"] == "preempted", said
        assert saved + 2 <= status["step"] < 42
        if number is None:
            assert "exitcode  : 75" in said, said
        elif number != signal.SIGKILL:  # which takes their stderr away
            assert said.count("stopped: ") == 1, said
        saved = status["step"]


@pytest.mark.slow
def test_decoding_processes_die_with_a_killed_run_and_the_folder_is_free(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs too, which nothing else ends."""
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", "hang@row=5")
    out = tmp_path / "run"
    process = start(videos, out, "optim.epochs=500", agent=False)
    wait_until(lambda: read_status(out) != {} and len(processes_in(out)) == 2)
    time.sleep(2)  # row 5 is among the 24 of the first three steps, which are decoded at once
    second = run_tool("pretrain", *options(videos, out, "optim.epochs=500"), cwd=tmp_path)
    assert second.returncode == 70
    assert f"another run is going on in {out} (host {os.uname().nodename}, pid {process.pid})" in second.stderr
    assert process.stderr is not None
    process.stderr.close()  # not communicate: it would wait for a process that lives on
    process.kill()
    process.wait()
    wait_until(lambda: not processes_in(out), 5)
    assert read_status(out)["status"] == "running", "nobody was left to say more"
    RunLock(out, {}).take(patience=5)  # what ends gives its files back a moment after its name


def test_lock_without_flock_is_a_file_kept_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    first, second = RunLock(tmp_path, {"host": "here", "pid": 1}), RunLock(tmp_path, {"host": "there"})
    first.take()
    with pytest.raises(InputError, match=r"another run is going on in .* \(host here, pid 1\)"):
        second.take(patience=0)
    first.release()
    second.take(patience=0)
    old = time.time() - 3600
    os.utime(tmp_path / ".lock.held", (old, old))
    first.take(patience=0)  # nobody has touched it for an hour
    os.utime(tmp_path / ".lock.held", (old, old))
    first.keep()
    with pytest.raises(InputError):
        second.take(patience=0)


def test_of_two_starts_that_find_an_old_lock_one_takes_it_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    rename = os.rename
    faster, slower = RunLock(tmp_path, {"host": "faster"}), RunLock(tmp_path, {"host": "slower"})

    def too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        faster.take(patience=0)
        rename(source, target)

    monkeypatch.setattr(fcntl, "flock", unsupported)
    RunLock(tmp_path, {"host": "dead"}).take()
    old = time.time() - 3600
    os.utime(tmp_path / ".lock.held", (old, old))
    monkeypatch.setattr(os, "rename", too_late)
    with pytest.raises(InputError, match="host faster"):
        slower.take(patience=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".lock.held"]


def test_run_keeps_its_lock_young_where_there_is_no_flock(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(status_file, "SECONDS", 0.05)
    cfg = compose_pretrain(*options(videos, tmp_path / "run"))
    with RunFolder(tmp_path / "run", cfg, StopRequest(tmp_path / "run")) as place:
        place.begin(0, 30)
        held, old = tmp_path / "run/.lock.held", time.time() - 3600
        os.utime(held, (old, old))
        time.sleep(0.1)
        place.at(1)
        assert time.time() - held.stat().st_mtime < 60
    assert not held.exists()


def test_two_starts_of_a_new_run_do_not_share_its_folder(videos: Path, tmp_path: Path) -> None:
    cfg = compose_pretrain(*options(videos, tmp_path / "run"))
    first, second = (RunFolder(tmp_path / "run", cfg, StopRequest(tmp_path / "run")) for _ in range(2))
    with second:
        with first:
            assert not first.known
            assert not second.known
            first.begin(0, 30)
        with pytest.raises(InputError, match="another run has begun in .* meanwhile"):
            second.begin(0, 30)


def test_status_is_written_whole_and_a_damaged_one_is_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text('{"status": "run')
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text(json.dumps({"status": "running"}))
    assert read_status(tmp_path)["status"] == "running"


def test_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(tmp_path) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_run_ends_when_its_folder_is_taken_away(how: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving would make the folder again, with nothing but a checkpoint in it."""
    monkeypatch.setattr(status_file, "SECONDS", 0.0)
    out = tmp_path / "run"

    def take_away() -> None:
        (out.rename(tmp_path / "elsewhere") if how == "renamed" else shutil.rmtree(out, ignore_errors=True))

    thread = at_step(3, out, take_away)
    with pytest.raises(Stopped, match=r"the run folder .*run was removed or renamed while the run was going"):
        pretrain(compose_pretrain(*options(videos, out)))
    thread.join()


OUT_OF_MEMORY = """
import torch
from sce_video.command_line import errors_as_exit_codes
with errors_as_exit_codes():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free. "
        "Including non-PyTorch memory, this process has 78.09 GiB memory in use. Of the allocated memory 70.00 GiB is ..."
    )
"""


def test_running_out_of_gpu_memory_ends_with_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 70
    assert result.stderr.splitlines() == [
        "error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is "
        "free: add optim.accumulate=2 (the same batch in two halves), system.recompute=true, or a smaller optim.batch; "
        "tools/plan.py says what fits"
    ]
