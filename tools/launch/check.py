"""Check machines before training: processes, their connection, clocks, disk, limits and decoders.

    python tools/launch.py check
    torchrun --nproc-per-node 8 tools/launch.py check
    python tools/launch.py slurm nodes=4 gpus=8 time=10 -- tools/launch.py check

Lines that begin with `problem` name causes of a failed or wrong run; with any, the exit code is 1.
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

ELEMENTS = 4 << 20  # float32 elements of the timed all-reduce: 16 MiB, about a bucket of gradients
SKEW_SECONDS = 2.0  # largest clock difference; locks on shared disks compare file times across machines
FREE_GB = 20.0
OPEN_FILES = 4096


@dataclass
class Check:
    """tools/launch.py check"""

    out: str = "."  # folder whose disk is checked
    device: Device = Device.auto


def run(options: Check) -> None:
    """Check every process and print the report on rank 0. Exits with 1 if it finds a problem."""
    with distributed.session(options.device.value) as device:
        connection = check_connection(device)
        own = describe_process(Path(options.out), device)
        # Right after a barrier, synchronised clocks show the same time.
        distributed.barrier()
        own["time"] = time.time()
        ranks = distributed.gather_objects(own)
    if int(os.environ.get("RANK", "0")):
        return
    lines, problems = page(ranks, connection)
    print("\n".join([*lines, *(f"problem: {problem}" for problem in problems)]), flush=True)
    if problems:
        sys.exit(1)


def check_connection(device: torch.device) -> dict[str, Any]:
    """All-reduce a tensor; return the backend, whether the sum is correct, and the rate in GB/s."""
    if not distributed.active():
        return {"backend": "none (one process)", "right": True, "rate": 0.0}
    rank, world = distributed.rank(), distributed.world_size()
    values = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == world * (world + 1) / 2).all())
    distributed.barrier()
    start = time.perf_counter()
    dist.all_reduce(values)
    values[0].item()  # synchronises with the device
    return {
        "backend": dist.get_backend(),
        "right": all(distributed.gather_objects(right)),
        "rate": 4e-9 * ELEMENTS / (time.perf_counter() - start),
    }


def describe_process(folder: Path, device: torch.device) -> dict[str, Any]:
    """Return the host, device, free disk (GB), limits and decoders of this process."""
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
    """Return the report's lines about all ranks, and the problems."""
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
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {v}" for name, v in first["versions"].items() if v),
    ]
    wrong = {
        "all-reduce gives a wrong sum: check drivers and network before training": not connection["right"],
        f"clocks are {skew:.1f} s apart: synchronise them (chrony, ntp)": skew > SKEW_SECONDS,
        f"only {free:.0f} GB free in the run's folder; a checkpoint of R3D-50 takes 1 GB": free < FREE_GB / 10,
        f"only {_limit(files)} open files allowed: ulimit -n {OPEN_FILES}": 0 <= files < OPEN_FILES // 4,
        "machines run different versions: " + "; ".join(f"{rank['host']}: {rank['versions']}" for rank in ranks): any(
            rank["versions"] != first["versions"] for rank in ranks
        ),
    }
    lines += [f"note: {note}" for note in notes(first["versions"])]
    return lines, [problem for problem, found in wrong.items() if found]


def notes(versions: dict[str, str]) -> list[str]:
    """Return known problems of the installed decoders."""
    found = []
    if versions["decord"].startswith("0.6"):
        found.append(
            "decord 0.6 (FFmpeg 4.1) hangs or returns wrong frames for files with an edit list, e.g. stream-copied cuts: "
            "run data_prep/doctor.py on the list, or use data.decoder=pyav"
        )
    if not versions["decord"] and not versions["decord2"]:
        found.append("decord is not installed: PyAV reads all videos")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"
