"""`tools/launch.py`: read the command line, render, and submit, start or print."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import check, render
from launch.command import Command, read_command, split
from launch.inputs import check_inputs
from launch.options import PLACES, Launch, Local, Slurm, log_folder, read_options
from sce_video.command_line import errors_as_exit_codes, option_names
from sce_video.errors import InputError


def main(arguments: Sequence[str], usage: str) -> None:
    """Run a command line. Errors print one line and set the exit code. usage: text of --help."""
    if not arguments or {"-h", "--help"} & set(arguments[:2]):
        print(usage + "\n" + help_text(), end="")
        return
    with errors_as_exit_codes():
        if arguments[0] == "check":
            check.run(read_options(arguments[1:], check.Check))
            return
        if arguments[0] not in PLACES:
            raise InputError(f"{arguments[0]!r} is not one of {', '.join(PLACES)}, check")
        own, program = split(arguments[1:])
        options = read_options(own, PLACES[arguments[0]])
        command = read_command(program)
        check_inputs(command.words, options, dry=options.dry_run)
        launch(options, command)


def help_text() -> str:
    """Return the names of each target's options."""
    shared = set(option_names(Launch))
    lines = [f"every target: {', '.join(sorted(shared))}"]
    lines += [f"{name}: {', '.join(n for n in option_names(schema) if n not in shared)}" for name, schema in PLACES.items()]
    lines.append(f"check: {', '.join(option_names(check.Check))}")
    return "\n".join(lines) + "\nTheir meaning: tools/launch/options.py, docs/launch.md\n"


def launch(options: Launch, command: Command) -> None:
    """Submit to SLURM, or run the restart loop in this process."""
    if isinstance(options, Slurm):
        script = render.slurm(options, command, os.getcwd())
        if options.dry_run:
            print(script, end="")
        else:
            submit(script, Path(log_folder(options, command.run)))
    elif isinstance(options, Local):
        script = render.local(options, command)
        if options.dry_run:
            print(script, end="")
        else:
            os.execvp("bash", ["bash", "-c", script, "launch"])


def submit(script: str, logs: Path) -> None:
    """Write the script to the log folder and submit it. Raises InputError with sbatch's message."""
    path = logs / "launch.sh"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
    except OSError as error:
        raise InputError(f"logs={logs} cannot be written ({error.strerror}): choose another logs=") from error
    try:
        result = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            "there is no sbatch here: submit from a machine of the cluster, or print the script with dry_run=true"
        ) from error
    if result.returncode:
        raise InputError(f"sbatch refused {path}: {result.stderr.strip() or result.stdout.strip()}")
    job = result.stdout.strip().split(";")[0]
    print(f"submitted job {job}; output: {logs}/{job}.log; script: {path}")
    sys.stdout.flush()
