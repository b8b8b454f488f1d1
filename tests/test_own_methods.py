"""The methods of examples/, each in one file outside the package: pretrained, continued after kill -9, and evaluated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_RECIPE, losses, run_tool

import sce_video
from sce_video.runs import checkpoint

EXAMPLES = {"byol": ("OwnBYOL", "OwnBYOL.momentum=0.9"), "swav": ("OwnSwAV", "OwnSwAV.prototypes=20")}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_method_of_ones_own_survives_a_kill_and_is_evaluated(name: str, videos: Path, tmp_path: Path) -> None:
    cls, option = EXAMPLES[name]
    options = [word for word in TINY_RECIPE if not word.startswith("sce.")]
    options += [f"method={ROOT}/examples/{name}.py:{cls}", option, f"data.train={videos}/train.csv", "system.save_every=2"]
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "tools/pretrain.py"), *options, "out=run"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step_0000000[2-9]")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = run_tool("pretrain", *options, "out=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert losses(folder)[-1] < losses(folder)[0]
    state = checkpoint.load(checkpoint.find(folder))[0]["method"]
    if name == "swav":
        assert torch.allclose(state["prototypes.weight"].norm(dim=1), torch.ones(20))
    assert sce_video.load_encoder(folder)(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 128)
    lists = [f"train={videos}/train.csv", f"test={videos}/val.csv", "shots=[]", "clips_per_video=1", "num_crops=1", "k=5"]
    result = run_tool("evaluate", "checkpoint=run", *lists, "out=scores.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "scores.json").is_file()
