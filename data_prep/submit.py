"""Run the shards of a program as jobs on a cluster with submitit (pip install -e ".[cluster]").

python data_prep/submit.py --shards 64 --minutes 240 --parameter slurm_partition=cpu -- doctor.py train.csv --out health
python data_prep/submit.py --shards 200 --cores 8 --at-once 50 -- shrink.py train.csv --out /data/small
python data_prep/submit.py --cluster local --shards 2 --wait -- doctor.py train.csv --out health        # on this machine

After -- stands a command of doctor.py or shrink.py; submit.py adds --num-shards, --shard-index and --jobs. SLURM runs one
job array. A job that is preempted or reaches its time limit is queued again and continues its shard. With --wait the
shards are merged at the end; otherwise the merge command is printed. The logs are in OUT-jobs/.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line

from sce_video.errors import InputError, printable

PROGRAMS = ("doctor.py", "shrink.py")
HERE = Path(__file__).resolve().parent


class ShardRun:
    """The command of one shard. submitit calls it in the job, and `checkpoint` before the job is stopped."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __call__(self) -> int:
        """Run the command; raise CalledProcessError if it fails."""
        return subprocess.run(self.command, check=True).returncode

    def checkpoint(self) -> Any:
        """Queue the same command again; the program continues its shard."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def main(arguments: Sequence[str]) -> None:
    """Run the program with the arguments of its command line."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--shards", type=command_line.positive, required=True, metavar="N", help="number of jobs")
    parser.add_argument("--cluster", default="slurm", choices=("slurm", "local"), help="default: slurm")
    parser.add_argument("--cores", type=command_line.positive, default=2, help="per job, also --jobs (default: 2)")
    parser.add_argument("--minutes", type=command_line.positive, default=240, help="a job's time limit (default: 240)")
    parser.add_argument("--at-once", type=command_line.positive, default=64, help="jobs running at a time (default: 64)")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="parameter of the submitit executor"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the jobs, then merge")
    own, command = split(arguments)
    submit(parser.parse_args(own), command)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options before `--` and the command after it."""
    if "--" not in arguments:
        if {"-h", "--help"} & set(arguments):
            return list(arguments), []
        raise InputError("no command: write the program and its options after --, e.g. -- doctor.py list.csv --out health")
    end = list(arguments).index("--")
    own, command = list(arguments[:end]), list(arguments[end + 1 :])
    if not command or os.path.basename(command[0]) not in PROGRAMS or command[1:2] == ["merge"]:
        raise InputError(f"the command after -- must begin with one of {', '.join(PROGRAMS)}, without merge")
    if any(word.split("=")[0] in ("--num-shards", "--shard-index", "--jobs", "--estimate") for word in command):
        raise InputError("leave --num-shards, --shard-index, --jobs and --estimate out of the command: they are set here")
    return own, command


def submit(given: Any, command: list[str]) -> None:
    """Submit the jobs; with --wait, wait for them and merge."""
    if importlib.util.find_spec("submitit") is None:
        raise InputError('submitit is not installed: pip install -e ".[cluster]"')
    import submitit

    name = os.path.basename(command[0])
    out = out_of(command)
    executor = submitit.AutoExecutor(folder=f"{os.path.abspath(out)}-jobs", cluster=given.cluster)
    parameters = dict(parameter.partition("=")[::2] for parameter in given.parameter)
    executor.update_parameters(name=name.removesuffix(".py"), timeout_min=given.minutes, cpus_per_task=given.cores, **parameters)
    if given.cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=given.at_once)
    program_and_options = [sys.executable, str(HERE / name), *command[1:], "--jobs", str(given.cores)]
    shards = (["--num-shards", str(given.shards), "--shard-index", str(index)] for index in range(given.shards))
    runs = [ShardRun([*program_and_options, *shard]) for shard in shards]
    with executor.batch():
        jobs = [executor.submit(run) for run in runs]
    merge = [sys.executable, str(HERE / name), "merge", out]
    print(f"{len(jobs)} jobs submitted, e.g. {jobs[0].job_id}; logs in {printable(out)}-jobs")
    if not given.wait:
        print(f"when all are done: python data_prep/{name} merge {printable(out)}")
        return
    failed = [index for index, job in enumerate(jobs) if job.exception() is not None]
    if failed:
        raise InputError(f"shards {', '.join(map(str, failed))} failed, see {out}-jobs: run the same command again")
    if subprocess.run(merge, check=False).returncode:
        raise InputError("the shards could not be merged, see the line above")


def out_of(command: Sequence[str]) -> str:
    """Return the value of --out in a command."""
    for index, word in enumerate(command):
        if word.startswith("--out="):
            return word.removeprefix("--out=")
        if word == "--out" and index + 1 < len(command):
            return command[index + 1]
    raise InputError("the command after -- has no --out")


if __name__ == "__main__":
    command_line.run(main)
