"""Lines that a full disk does not take wait for room, and no half line stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sce_video.runs.files import AppendFile

FULL = """
import resource, signal, sys
from pathlib import Path
from sce_video.runs.files import AppendFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
path = Path(sys.argv[1])
lines = AppendFile(path)
for number in range(4):
    lines.add(f"{number} " + 58 * "x")
    print(path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
lines.add("4")
"""


def test_lines_wait_for_room_and_are_written_whole(tmp_path: Path) -> None:
    """100 bytes take one line of 61 and a half."""
    path = tmp_path / "log"
    result = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["61"] * 4, "no half line stays"
    assert result.stderr == f"warning: {path} cannot be written: File too large; its lines wait for room\n", "told once"
    assert [line[0] for line in path.read_text().splitlines()] == list("01234")


def test_a_line_that_a_kill_cut_off_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntw")
    AppendFile(tmp_path / "log").add("three\udcff")
    assert (tmp_path / "log").read_bytes() == b"one\ntw\nthree\xff\n"


def test_whole_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    script = "import sys, pathlib; from sce_video.runs.files import write_atomically as w; w(pathlib.Path(sys.argv[1]), chr(252))"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "config.yaml")], check=True, env=environment)
    assert (tmp_path / "config.yaml").read_bytes() == "\u00fc".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
