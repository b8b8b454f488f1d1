"""Measure a function in its own process: seconds of each repetition, and peak resident memory.

Compare ratios between cases of one run on one machine; absolute times are unreliable on shared cores. A case is a
module-level function with keyword arguments of plain values. It prepares its input and returns the function to time. That
function returns its result as plain values, so that the results of all cases can be compared.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple


class Measurement(NamedTuple):
    """Seconds of each repetition without warm-up, peak resident bytes of the process, and the result."""

    seconds: list[float]
    peak_bytes: int
    found: Any

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def machine(packages: Sequence[str]) -> str:
    """Return lines with the date, CPU, cores, threads, versions of Python and `packages`, and the command."""
    import torch

    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return "\n".join(
        [
            f"date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"machine: {_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.1f}",
            f"versions: Python {platform.python_version()}, {versions}",
            f"command: python {' '.join(sys.argv)}",
        ]
    )


class Request(NamedTuple):
    """A case to measure: `module.case(**arguments)` returns the function, which is timed after `warm_up` calls.

    clock: a function of Python's time module; `process_time` is the CPU time of all threads.
    """

    module: str
    case: str
    arguments: dict[str, Any]
    warm_up: int = 1
    clock: str = "perf_counter"


def measure_in_rounds(requests: Mapping[str, Request], rounds: int, *, repeats: int = 1) -> dict[str, Measurement]:
    """Run every case in each round, so that other load on the machine affects all cases equally.

    The fastest of several repeats in a round counts, because other load disturbed it least.
    """
    rows: dict[str, Measurement] = {}
    for number in range(rounds):
        for name, request in requests.items():
            new = measure(request, repeats=repeats)
            old = rows.get(name, Measurement([], 0, None))
            best = min(new.seconds)
            rows[name] = Measurement([*old.seconds, best], max(old.peak_bytes, new.peak_bytes), new.found)
            print(f"round {number + 1}, {name}: {best:.2f} s", file=sys.stderr, flush=True)
    return rows


def measure(request: Request, *, repeats: int = 1, python: str = sys.executable) -> Measurement:
    """Time a case in a new Python process. Raises RuntimeError with its error output if it fails.

    python: interpreter with the packages that the case needs; PYTHONPATH adds this package, and ours for our interpreter.
    """
    tools = Path(__file__).resolve().parents[1]
    inherited = os.environ.get("PYTHONPATH") if python == sys.executable else None
    paths = [str(tools), str(tools.parent), *([inherited] if inherited else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [python, "-m", __name__, json.dumps([*request, repeats])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise RuntimeError(f"case {request.case} failed with exit code {result.returncode}:\n{result.stderr}")
    return Measurement(**json.loads(result.stdout.splitlines()[-1]))


def table(rows: Mapping[str, Measurement], rival: str) -> str:
    """Return one line per case: median and range of the seconds, peak memory, and ratio to the rival's time.

    The ratio is the median over the rounds, with the range.
    """
    width = max(map(len, rows))
    lines = [f"{'case':<{width}} {'median s':>9} {'min..max s':>15} {'peak GB':>8}  times the time of {rival}"]
    for name, row in rows.items():
        ratios = [own / other for own, other in zip(row.seconds, rows[rival].seconds, strict=True)]
        lines.append(
            f"{name:<{width}} {row.median:9.2f} {f'{min(row.seconds):.2f}..{max(row.seconds):.2f}':>15} "
            f"{row.peak_bytes / 1e9:8.2f}  {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        )
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes. ru_maxrss would include the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _run_case(module: str, case: str, arguments: dict[str, Any], warm_up: int, clock: str, repeats: int) -> dict[str, Any]:
    now = getattr(time, clock)
    timed = getattr(importlib.import_module(module), case)(**arguments)
    seconds, found = [], None
    for repeat in range(warm_up + repeats):
        start = now()
        found = timed()
        if repeat >= warm_up:
            seconds.append(now() - start)
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "found": found}


if __name__ == "__main__":
    print(json.dumps(_run_case(*json.loads(sys.argv[1]))))
