"""Is this a place to train? The processes, their connection, clocks, disk, limits and decoders, in one page.

    python tools/launch.py check
    torchrun --nproc-per-node 8 tools/launch.py check
    python tools/launch.py slurm nodes=4 gpus=8 time=10 -- tools/launch.py check

Lines that begin with `problem` are what will stop or spoil a run; there the exit code is 1.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sce_video import distributed
from sce_video.config.shared import Device

ELEMENTS = 4 << 20  # float32, of the timed all-reduce: 16 MiB, about a bucket of gradients
SKEW_SECONDS = 2.0  # of the clocks; file times and locks on shared disks are compared across machines
FREE_GB = 20.0
OPEN_FILES = 4096


@dataclass
class Check:
    """tools/launch.py check"""

    out: str = "."  # folder whose disk is looked at
    device: Device = Device.auto


def run(options: Check) -> None:
    """Look at every process and print the page on rank 0; exits with 1 if there is a problem."""
    with distributed.session(options.device.value) as device:
        connection = look_at_connection(device)
        own = look_here(Path(options.out), device)
        # Right after a barrier all clocks should show the same time.
        distributed.barrier()
        own["time"] = time.time()
        ranks = distributed.gather_objects(own)
    if int(os.environ.get("RANK", "0")):
        return
    lines, problems = page(ranks, connection)
    print("\n".join([*lines, *(f"problem: {problem}" for problem in problems)]), flush=True)
    if problems:
        sys.exit(1)


def look_at_connection(device: torch.device) -> dict[str, Any]:
    """Sum a tensor over all ranks; return the backend, whether the sum is right, and the rate in GB/s."""
    if not distributed.active():
        return {"backend": "none (one process)", "right": True, "rate": 0.0}
    rank, world = distributed.rank(), distributed.world_size()
    values = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == world * (world + 1) / 2).all())
    distributed.barrier()
    start = time.perf_counter()
    dist.all_reduce(values)
    values[0].item()  # waits for the device
    return {
        "backend": dist.get_backend(),
        "right": all(distributed.gather_objects(right)),
        "rate": 4e-9 * ELEMENTS / (time.perf_counter() - start),
    }


def look_here(folder: Path, device: torch.device) -> dict[str, Any]:
    """Return what one process sees: host, device, free disk (GB), limits, decoders."""
    while not folder.exists():
        folder = folder.parent
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {os.cpu_count()} cores",
        "free": shutil.disk_usage(folder).free / 1e9,
        "shared": shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").exists() else 0.0,
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "versions": {name: _version(name) for name in ("sce_video", "torch", "av", "decord", "decord2", "torchcodec")},
    }


def page(ranks: list[dict[str, Any]], connection: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is printed about all ranks, and the problems among it."""
    first, hosts = ranks[0], sorted({rank["host"] for rank in ranks})
    skew = max(rank["time"] for rank in ranks) - min(rank["time"] for rank in ranks)
    devices = sorted({rank["device"] for rank in ranks})
    free, shared = min(rank["free"] for rank in ranks), min(rank["shared"] for rank in ranks)
    files = min((rank["open files"] for rank in ranks if rank["open files"] >= 0), default=-1)
    lines = [
        f"processes: {len(ranks)} on {len(hosts)} machine(s): {', '.join(hosts)}",
        f"devices: {', '.join(devices)}",
        f"backend: {connection['backend']}; all-reduce {'ok' if connection['right'] else 'WRONG'}"
        + (f", {connection['rate']:.2f} GB/s for 16 MiB" if connection["rate"] else ""),
        f"clocks: {1000 * skew:.0f} ms apart",
        f"disk: {free:.0f} GB free; /dev/shm: {shared:.1f} GB free",
        f"limits: {_limit(files)} open files, {_limit(first['processes'])} processes",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {v}" for name, v in first["versions"].items() if v),
    ]
    wrong = {
        "all-reduce gives a wrong sum: check drivers and network before training": not connection["right"],
        f"clocks are {skew:.1f} s apart: synchronise them (chrony, ntp)": skew > SKEW_SECONDS,
        f"only {free:.0f} GB free where the run will be; a checkpoint of R3D-50 takes 1 GB": free < FREE_GB / 10,
        f"only {_limit(files)} open files allowed: ulimit -n {OPEN_FILES}": 0 <= files < OPEN_FILES // 4,
        "machines run different versions: " + "; ".join(f"{rank['host']}: {rank['versions']}" for rank in ranks): any(
            rank["versions"] != first["versions"] for rank in ranks
        ),
    }
    lines += [f"note: {note}" for note in notes(first["versions"])]
    return lines, [problem for problem, found in wrong.items() if found]


def notes(versions: dict[str, str]) -> list[str]:
    """Return what is known about the decoders that are installed."""
    found = []
    if versions["decord"].startswith("0.6"):
        found.append(
            "decord 0.6 (FFmpeg 4.1) hangs or gives wrong frames on files with an edit list, as stream-copied cuts have: "
            "run data_prep/doctor.py over the list, or use data.decoder=pyav"
        )
    if not versions["decord"] and not versions["decord2"]:
        found.append("decord is not installed: PyAV reads everything")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"
