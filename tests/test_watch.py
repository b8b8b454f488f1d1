"""A step that takes too long ends the process, whatever the disk does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sce_video.runs.status import read_status

STUCK = """
import sys, time
from pathlib import Path
from sce_video.runs import watchdog
from sce_video.runs.status import Status
folder = Path(sys.argv[1])
status = Status(folder)
status.begin(0, 9)
watchdog.GRACE_SECONDS = 1.0
step_watch = watchdog.StepWatch(folder, status, 0.4)
step_watch.start()
step_watch.at(3)
def waits_for_ever():
    time.sleep(60)
waits_for_ever()
"""


@pytest.mark.parametrize("disk", ["works", "full", "stuck"])
def test_step_that_takes_too_long_ends_the_process(disk: str, tmp_path: Path) -> None:
    """Full: the stacks cannot be written, and go to stderr. Stuck, as a network disk: writing waits for ever."""
    if disk == "full":
        (tmp_path / "debug").touch()
    if disk == "stuck":
        (tmp_path / "debug").mkdir()
        subprocess.run(["mkfifo", str(tmp_path / "debug/stack_rank0.txt")], check=True)
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 40
    assert result.returncode == 1, result.stderr
    reason = "step 3 has taken more than system.step_timeout (0.4 s)"
    assert f"error: rank 0: {reason}" in result.stderr
    if disk == "works":
        assert "waits_for_ever" in (tmp_path / "debug/stack_rank0.txt").read_text()
    if disk == "full":
        assert "cannot be written (File exists)" in result.stderr
        assert "waits_for_ever" in result.stderr
    if disk != "stuck":
        assert (read_status(tmp_path)["status"], read_status(tmp_path)["reason"]) == ("failed", reason)
