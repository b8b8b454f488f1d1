"""A worker that opens and reads thousands of videos keeps its memory and its file descriptors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import numbered_frames
from hard_files import BUILDERS, build
from test_frame_folder import about, folder_of, zip_of

OPENS = 2000
READ = """
import json, os, random, sys
import torch
from sce_video.data.decode import DecodeError, open_video
torch.set_num_threads(1)
decoder, opens, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

def state():
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resident, len(os.listdir("/proc/self/fd"))

draw, refused, states = random.Random(0), 0, []
for number in range(opens):
    try:
        with open_video(paths[number % len(paths)], decoder) as video:
            first = draw.randrange(video.num_frames)
            video.read([first, video.num_frames - 1])
    except DecodeError:
        refused += 1
    if number + 1 in (opens // 10, opens):
        states.append(state())
print(json.dumps([*states[0], *states[1], refused]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells a process's memory this way")
@pytest.mark.timeout(400)
def test_two_thousand_opens_leak_nothing(tmp_path: Path) -> None:
    """All hard files, pictures, and refused ones in turn; after the first tenth memory grows by less than 30 MB."""
    paths = [build(name, tmp_path) for name in BUILDERS]
    whole = paths[0].read_bytes()
    for name, content in (("cut.mp4", whole[: len(whole) // 2]), ("list.mp4", b"#EXTM3U\n" * 99), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    frames = numbered_frames(12)
    paths.append(folder_of(tmp_path / "a.frames", frames, json=about(frames)))
    paths.append(zip_of(paths[-1]))
    hole = Path(shutil.copytree(paths[-2], tmp_path / "hole.frames"))
    (hole / "000011.jpg").unlink()
    paths += [hole, tmp_path / "missing.mp4"]
    bad = {"cut.mp4", "list.mp4", "empty.mp4", "hole.frames", "missing.mp4", "broken_off.avi", "broken_off_faststart.mp4"}
    command = [sys.executable, "-c", READ, "auto", str(OPENS), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    megabytes, descriptors, megabytes_after, descriptors_after, refused = json.loads(result.stdout)
    assert refused == sum(paths[number % len(paths)].name in bad for number in range(OPENS))
    assert megabytes_after - megabytes < 30
    assert descriptors_after <= descriptors
