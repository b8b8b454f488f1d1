"""examples/quickstart.ipynb is a notebook without outputs, and its code runs.

Neither jupyter nor nbclient is a dependency: its code cells run here in their order and in one namespace, as `python -c`: like
a notebook's kernel, such a process has no file that its workers could import.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

SECONDS = 180  # on two quiet cores (measured: 134 CPU seconds); a busy machine gets three times as long
CHECKS = """
assert features.shape == (48, 128) and times.shape == (48, 2, 2)
assert pictures.shape == (4, 40, 40, 3)
assert neighbours.shape == (48, 3) and not any(row in neighbours[row] for row in range(48))
"""


def notebook() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "examples/quickstart.ipynb").read_text())
    return loaded


def test_the_notebook_has_the_form_of_nbformat_4_and_no_outputs() -> None:
    found = notebook()
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert {"metadata", "cells"} < set(found)
    names = [cell["id"] for cell in found["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in found["cells"]:
        code = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert all(isinstance(line, str) for line in cell["source"])
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_its_cells_run_in_an_empty_folder(tmp_path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    code = "\n\n".join([*cells, CHECKS])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=3 * SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" -> ") >= 5
