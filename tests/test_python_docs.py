"""The examples of docs/python.md run, one after another in one process."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

CHECKS = """
assert features.shape == (4, 128) and times.shape == (4, 2, 2)
assert views.shape[2:] == (8, 40, 40)
assert sce_video.load_encoder("runs/py")(clips).shape == (6, 128)
"""


@pytest.mark.slow
def test_examples_run_in_their_order(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    assert len(blocks) == 3
    body = textwrap.indent("\n".join([*blocks, CHECKS]), "    ")
    (tmp_path / "doc.py").write_text(f"def main():\n{body}\n\nif __name__ == '__main__':\n    main()\n")
    done = subprocess.run([sys.executable, "doc.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
