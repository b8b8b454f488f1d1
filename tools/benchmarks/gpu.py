"""Everything worth knowing of a GPU, for whoever has one for ten minutes: two halves of at most five minutes each on an H100.

Words: part=1|2 (default: both), device=cuda|cpu, size=full|tiny, only=NAME,NAME. Every check is a process of its own, prints
each figure at once as a line of JSON, and is killed with all its children at its limit; the rest goes on. Needs this
checkout, torch, torchvision, pytorchvideo, av, hydra-core and fvcore; the check `tests` needs pytest too. Nothing is
installed. Keep the output: tools/benchmark.py gpu part=1 | tee results_1.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sce_video.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# Checks by half, with their limits in seconds: about twice of what an H100 should take.
HALVES = {
    "1": {"environment": 40, "augmentation": 60, "networks": 120, "step": 80, "memory": 60, "tests": 90},
    "2": {"precision": 40, "files": 80, "ranks": 80, "resume": 60, "evaluation": 60, "demo": 120},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("words", nargs="*", help="part=1|2 device=cuda|cpu size=full|tiny only=NAME,NAME")


def run(options: argparse.Namespace) -> None:
    """Run the checks of one half or of both, each in its own group of processes."""
    given = {"part": "1,2", "device": "cuda", "size": "full", "only": ""}
    for word in options.words:
        name, _, value = word.partition("=")
        if name not in given:
            raise InputError(f"{word!r}: give {', '.join(f'{known}=' for known in given)}")
        given[name] = value
    if not set(given["part"].split(",")) <= set(HALVES):
        raise InputError(f"part={given['part']}: 1, 2 or 1,2")
    if given["size"] not in ("full", "tiny") or given["device"] not in ("cuda", "cpu"):
        raise InputError(f"size={given['size']} must be full or tiny, device={given['device']} cuda or cpu")
    checks = {name: limit for half in given["part"].split(",") for name, limit in HALVES[half].items()}
    chosen = given["only"].split(",") if given["only"] else list(checks)
    if unknown := set(chosen) - set(checks):
        raise InputError(f"only={given['only']}: {', '.join(sorted(unknown))} is none of {', '.join(checks)}")
    for name in chosen:
        say(run_check(name, given["device"], given["size"], checks[name]))


def say(figures: dict[str, object]) -> None:
    """Print figures as a line of JSON at once."""
    print(json.dumps(figures), flush=True)


def run_check(name: str, device: str, size: str, limit: float) -> dict[str, object]:
    """Run a check as a process with a group of its own, and kill the group at the limit; return how it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_checks", name, device, size]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        ended: object = process.wait(limit)
    except subprocess.TimeoutExpired:
        ended = f"killed at its limit of {limit:.0f} s"
    finally:
        # Also after a good end: children that outlive their check would disturb the next one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"check": name, "ended": ended, "seconds": round(time.monotonic() - began, 1)}
