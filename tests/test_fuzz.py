"""Damaged files end in DecodeError or in the frames of a forward decode: no crash, no hang, no gigabytes, no other frame."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, TESTS_TOO
from hard_files import encode

VARIANTS = 500
WHOLE = {
    "whole.mp4": ("libx264", {"g": "12", "bf": "2"}),
    "whole.mov": ("libx265", {"x265-params": "keyint=12:bframes=2:log-level=none"}),
    "whole.mkv": ("libx264", {"g": "12", "bf": "2"}),
    "whole.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime"}),
    "whole.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "whole.ts": ("libx264", {"g": "12", "bf": "2"}),
    "whole.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "whole.flv": ("libx264", {"g": "12"}),
}
# What cannot hold:
# - H.264 and MPEG-2, at most one variant of a hundred: what damage leaves undecoded FFmpeg fills from other pictures and from
#   what its memory held, which differ where pictures are skipped or kept.
CONCEALED = {".mpg", ".ts", ".flv", ".mkv", ".mp4", ".avi"}
# - MP4 and Matroska: an index numbers the packets, whatever is in them. A forward decode gives no frame for some damaged
#   packets, so that all later frames have smaller numbers in it. Decoding every file in full would cost training its speed.
MOVED = {".mp4", ".mov", ".mkv", ".webm"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory this way")
def test_damaged_files_are_refused_or_read_as_a_forward_decode_shows_them(tmp_path: Path) -> None:
    for name, (codec, options) in WHOLE.items():
        encode(tmp_path / name, codec, **options)
    command = [sys.executable, str(ROOT / "tests/fuzz_reader.py"), str(tmp_path), "seed", "0", str(VARIANTS)]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONPATH": TESTS_TOO}
        )
        try:
            text, _ = process.communicate(timeout=20 + VARIANTS // 5)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
    lines = [json.loads(line) for line in text.splitlines()]
    assert process.returncode == 0, (lines[-1], (tmp_path / "errors").read_text()[-2000:])
    rows = [line for line in lines if "outcome" in line]
    assert len(rows) == VARIANTS
    assert max(row["seconds"] for row in rows) < 20
    assert max(row["peak_kb"] for row in rows) < 1 << 20
    counts = Counter(row["outcome"] for row in rows)
    assert counts["refused"] > VARIANTS / 10
    assert counts["equal"] > VARIANTS / 3
    assert counts["moved"] < VARIANTS / 50
    assert {Path(row["name"]).suffix for row in rows if row["outcome"] == "moved"} <= MOVED
    different = [row["name"] for row in rows if row["outcome"] == "different"]
    assert {Path(name).suffix for name in different} <= CONCEALED
    assert len(different) <= VARIANTS / 100, different
