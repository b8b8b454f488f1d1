"""Run programs in children of one Python that has imported the libraries.

Starting Python with torch takes two seconds, a fork of one that has them 20 ms. Each program is a process of its own: its
own working directory, environment, output and exit code. None of our code is imported before the fork. Programs whose
environment changes how Python or a library starts are started freshly.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Variables that are read when a program runs, not when Python or a library starts.
READ_LATER = ("SCE_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "COLUMNS", "HOME", "TMPDIR", "PYTEST_", "PATH")


class StartedPython:
    """A waiting Python; `run` is `subprocess.run` of a program in it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.folder = tempfile.mkdtemp()
        atexit.register(self.close)
        self.env = env
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, env=env, text=True)
        self.count = 0

    def close(self) -> None:
        """End the waiting Python, which leaves when its input ends."""
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fits(self, env: dict[str, str]) -> bool:
        """Whether a program with this environment may run here."""
        changed = {name for name in env.keys() | self.env.keys() if env.get(name) != self.env.get(name)}
        return all(name.startswith(READ_LATER) for name in changed)

    def run(self, command: list[str], *, cwd: Path, env: dict[str, str], timeout: int) -> subprocess.CompletedProcess[str]:
        """Run [program.py, arguments...] and return its exit code (negative: the signal that ended it) and its output."""
        self.count += 1
        place = Path(self.folder, str(self.count))
        place.mkdir()
        os.mkfifo(place / "code")
        request = {"command": command, "cwd": str(cwd), "env": env, "place": str(place), "timeout": timeout}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = (place / "code").read_text()  # waits until the program has ended
        out, err = ((place / name).read_text(errors="replace") for name in ("out", "err"))
        if not code:
            raise subprocess.TimeoutExpired(command, timeout, out, err)
        return subprocess.CompletedProcess(command, int(code), out, err)


def _wait_for_request() -> dict[str, object]:
    """Return, in a new process, the next request. The process above it waits for its end and says its exit code."""
    while line := sys.stdin.readline():
        if os.fork():
            os.wait()  # for the one that only starts the next, so that none is left a zombie
            continue
        if os.fork():
            os._exit(0)
        request: dict[str, object] = json.loads(line)
        program = os.fork()
        if not program:
            return request
        code = _wait(program, int(str(request["timeout"])))
        Path(str(request["place"]), "code").write_text(code)
        os._exit(0)
    sys.exit()


def _wait(program: int, seconds: int) -> str:
    """Return the exit code of a child, or nothing if it was killed after so many seconds."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(program, signal.SIGKILL))
    signal.alarm(seconds)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    return str(code) if signal.alarm(0) else ""


def _become(request: dict[str, object]) -> None:
    """Take over the request's environment, folder, output and arguments, as a new Python would have them."""
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        opened = os.open(os.path.join(str(request["place"]), name), flags | (os.O_CREAT if number else 0), 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    sys.argv = list(request["command"])  # type: ignore[call-overload]
    sys.path[0] = os.path.dirname(sys.argv[0])


if __name__ == "__main__":
    import runpy

    import av  # noqa: F401
    import hydra  # noqa: F401
    import torch.distributed
    import torch.utils.data  # noqa: F401

    _become(_wait_for_request())
    runpy.run_path(sys.argv[0], run_name="__main__")
