"""A terminal shows a bar that moves at every step; one without a size, as some containers give, shows lines instead."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

STEPS = """
import sys
from pathlib import Path
from sce_video.training.log import RunLog
log = RunLog(Path(sys.argv[1]), start_step=0, total_steps=4, steps_per_epoch=2, clips_per_step=8, every=20, processes=1)
for step in range(1, 5):
    log.progress(step, 1.0, 0.1)
log.close()
"""


@pytest.mark.parametrize(("columns", "bar"), [(120, True), (0, False)])
def test_steps_are_seen_in_a_terminal(columns: int, bar: bool, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert ("100%|" in shown) is bar
    assert "| loss 1.0000 | lr 1.00e-01 |" in shown
