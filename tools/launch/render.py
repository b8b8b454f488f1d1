"""Render options as scripts and YAML for a scheduler. Pure functions, except that they read our shell files.

This module quotes every user value for the shell (`shlex.quote`), for sbatch's comment lines, or in YAML. The shell code is
fixed and reads the values from variables.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from launch.command import Command
from launch.options import Launch, Local, Slurm, log_folder, python_of
from sce_video.errors import InputError

# By default torchrun does not handle SIGUSR1/2: they would kill it and leave its children running.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


def shell_code(*names: str) -> str:
    """Return the concatenated shell files."""
    return "\n".join((resources.files(__package__) / f"{name}.sh").read_text() for name in names)


def assignments(values: Mapping[str, str | int | Sequence[str]]) -> str:
    """Return shell lines that assign variables: a string, a number or an array."""
    lines = []
    for name, value in values.items():
        quoted = shlex.quote(str(value)) if isinstance(value, (str, int)) else f"({shlex.join(value)})"
        lines.append(f"{name}={quoted}")
    return "\n".join(lines) + "\n"


def _shared(options: Launch, command: Command) -> dict[str, str | int | Sequence[str]]:
    return {
        "RUN": command.run,
        "COMMAND": command.words,
        "TORCHRUN": [python_of(options), "-m", "torch.distributed.run", f"--signals-to-handle={_SIGNALS}"],
        "SETUP": options.setup,
        "STOP_SECONDS": options.stop_seconds,
        "MAX_RESTARTS": options.max_restarts,
    }


def _exports(options: Launch) -> str:
    # An environment variable, because torch 2.11 has no option --shutdown-timeout yet.
    return f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={options.stop_seconds}\n"


def slurm(options: Slurm, command: Command, folder: str) -> str:
    """Return an sbatch script. folder: absolute working directory of the program."""
    logs = log_folder(options, command.run)
    if "\\" in logs:  # with one, sbatch does not replace %j in the output's name
        raise InputError(f"logs={logs} must be without backslashes: choose another logs=")
    wanted = {
        "job-name": f"sce-{command.name}",
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": f"{options.gpu_type}:{options.gpus}" if options.gpu_type else options.gpus,
        "cpus-per-task": options.cpus or _cores(options, command),
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "chdir": folder,
        "output": f"{logs.replace('%', '%%')}/%j.log",
        "open-mode": "append",
        "signal": f"B:USR2@{options.notice_seconds}",
    }
    lines = [f"#SBATCH --{name}={_sbatch_quoted(str(value))}" for name, value in wanted.items() if value]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {_sbatch_quoted(word)}" for word in _words("extra", options.extra))]
    container = {"container-image": options.container, "container-mounts": options.mounts}
    srun = [f"--{name}={value}" for name, value in container.items() if value]
    if srun:
        srun.append(f"--container-workdir={folder}")
    values = {
        **_shared(options, command),
        "PROCESSES": options.processes_per_node,
        "PORT": options.port,
        "SRUN": srun,
        "LOGS": logs,
    }
    head = "\n".join(["#!/bin/bash", *lines, ""])
    return "\n".join([head, assignments(values) + _exports(options), shell_code("restart", "slurm")])


def _cores(options: Slurm, command: Command) -> int:
    """Return the cores per machine for the workers and the main process of each rank; 0 if the workers are not given."""
    given = [word.partition("=")[2] for word in command.words if word.startswith("system.workers=")]
    return options.processes_per_node * (int(given[-1]) + 1) if given and given[-1].isdecimal() else 0


def local(options: Local, command: Command) -> str:
    """Return the script of one machine, which restarts the run until it is completed."""
    rendezvous = ["--standalone"]
    if options.nodes > 1:
        rendezvous = [f"--nnodes={options.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={command.name}"]
        # Name the rendezvous host explicitly: host names do not identify it reliably.
        rendezvous += [f"--rdzv-endpoint={options.head}:{options.port}", f"--rdzv-conf=is_host={int(options.node == 0)}"]
    rendezvous.append(f"--nproc-per-node={options.processes_per_node}")
    values: dict[str, str | int | Sequence[str]] = {"RENDEZVOUS": rendezvous, "PAUSE_SECONDS": options.pause_seconds}
    head = assignments(_shared(options, command)) + assignments(values) + _exports(options)
    return "\n".join(["#!/bin/bash", head, shell_code("restart", "loop")])


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{name} ({text}) must be words as in a shell: {error}") from error


def _sbatch_quoted(word: str) -> str:
    """Quote a word for an #SBATCH line, which no shell reads: sbatch takes double quotes, and \\ before any character."""
    if re.fullmatch(r"[\w./%@:,=+-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
