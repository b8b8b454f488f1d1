"""The benchmark program prints its documented output, and measures each case in its own process."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import av
import pytest
from benchmarks import forms, gpu, kinetics_like
from benchmarks.measure import Measurement, Request, measure, measure_in_rounds, table
from conftest import run_tool

from sce_video.errors import InputError

SIZES = ["--queries", "40", "--bank", "90", "--width", "16", "--rounds", "1"]
CASES = ["naive torch", "scikit-learn", "faiss IndexFlatIP", "recall, engine torch", "recall, engine faiss", "recall + mAP"]


@pytest.mark.slow
def test_retrieval_prints_machine_command_figures_and_ratios(tmp_path: Path) -> None:
    result = run_tool("benchmark", "retrieval", *SIZES, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = result.stdout
    assert re.search(r"^date: \d{4}-\d\d-\d\d \d\d:\d\d UTC$", out, re.M)
    assert re.search(r"^machine: .+, \d+ cores, \d+ threads, load before", out, re.M)
    assert re.search(r"^versions: Python 3\.\d+\.\d+, torch \S+, numpy \S+, scikit-learn \S+, faiss-cpu \S+$", out, re.M)
    assert re.search(r"^command: python \S+benchmark.py retrieval --queries 40 ", out, re.M)
    assert "40 queries, bank of 90 x 16" in out
    for name in CASES:
        row = rf"^{re.escape(name)} +\d+\.\d\d +\d+\.\d\d\.\.\d+\.\d\d +\d+\.\d\d  \d+\.\d\d \(\d+\.\d\d\.\.\d+\.\d\d\)$"
        assert re.search(row, out, re.M), (name, out)
    # Rivals and ours found the same.
    assert len(set(re.findall(r"found, in percent: (.*?R@50 \d+\.\d\d)", out))) == 1
    assert len(re.findall("found, in percent", out)) == len(CASES)
    assert re.search(r"R@50 \S+, mAP \d+\.\d\d$", out, re.M)


def test_help_shows_commands(tmp_path: Path) -> None:
    for arguments, words in (([], "tools/benchmark.py retrieval --large"), (["retrieval"], "--queries")):
        result = run_tool("benchmark", *arguments, "--help", cwd=tmp_path)
        assert result.returncode == 0
        assert words in result.stdout


SLEEPER = """
import time
def sleeper(seconds):
    calls = []
    def timed():
        time.sleep(seconds)
        calls.append(1)
        return len(calls)
    return timed
"""


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cases.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "cases"


def test_a_case_is_warmed_up_repeated_and_has_its_own_peak(sleeper: str) -> None:
    held = bytearray(300_000_000)  # raises our own peak, not the case's
    result = measure(Request(sleeper, "sleeper", {"seconds": 0.05}, warm_up=2), repeats=3)
    assert len(result.seconds) == 3
    assert 0.05 <= min(result.seconds) <= result.median <= max(result.seconds)
    assert result.found == 5  # calls
    if sys.platform.startswith("linux"):
        assert 1e6 < result.peak_bytes < len(held)


def test_a_case_that_fails_is_named(sleeper: str) -> None:
    with pytest.raises(RuntimeError, match=r"case sleeper failed with exit code 1:\nTraceback"):
        measure(Request(sleeper, "sleeper", {}))


def test_cases_take_turns(sleeper: str, capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(sleeper, "sleeper", {"seconds": 0.0}, warm_up=0)
    rows = measure_in_rounds({"a": request, "b": request}, 2)
    assert [len(row.seconds) for row in rows.values()] == [2, 2]
    assert re.findall(r"round \d, \w", capsys.readouterr().err) == ["round 1, a", "round 1, b", "round 2, a", "round 2, b"]


def test_table_gives_medians_ranges_and_the_median_of_the_rounds_ratios() -> None:
    rows = {"ours": Measurement([1.0, 3.0, 2.0], 10**9, None), "rival": Measurement([4.0, 4.0, 20.0], 2 * 10**9, None)}
    assert table(rows, "rival").splitlines() == [
        "case   median s      min..max s  peak GB  times the time of rival",
        "ours       2.00      1.00..3.00     1.00  0.25 (0.10..0.75)",
        "rival      4.00     4.00..20.00     2.00  1.00 (1.00..1.00)",
    ]


@pytest.mark.slow
def test_evaluate_prints_ratios_and_memory(tmp_path: Path) -> None:
    sizes = ["--seconds", "2", "--clips", "2", "--frames", "2", "--size", "32", "--rounds", "1"]
    result = run_tool("benchmark", "evaluate", *sizes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("an open per view", "an open per clip", "one pass: ", "times an open per view", "2 clips x 3 crops"):
        assert words in result.stdout
    assert re.search(r"peak memory above the program with one small view: \d+ MB", result.stdout)


@pytest.mark.slow
def test_decoding_is_compared_with_every_decoder_and_the_limit(tmp_path: Path) -> None:
    result = run_tool("benchmark", "decode", "--count", "1", "--rounds", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 files" in result.stdout
    for name in ("ours", "ours, crops as planes", "PyAV, everything in order", "the limit: these packets decoded"):
        assert re.search(rf"^{name}: \d+\.\d clips/s/core, \d\.\d\d of the limit$", result.stdout, re.M), result.stdout
    result = run_tool("benchmark", "decode", "--files", "missing.mp4", cwd=tmp_path)
    assert (result.returncode, "missing.mp4: No such file" in result.stderr) == (70, True)


@pytest.mark.slow
def test_forms_are_compared_by_bytes_quality_and_speed(tmp_path: Path) -> None:
    """All encodings of a short video: smaller frames take fewer bytes; a lower crf takes more and has a higher PSNR."""
    path = kinetics_like.make(tmp_path, 1, seconds=4)[0]
    result = run_tool("benchmark", "decode", "--forms", "--rounds", "1", "--files", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    line = r"^(.+): (\d+\.\d\d) of the bytes, PSNR (\d+\.\d) dB, \d+ clips/s/core, \d+\.\d times as it is$"
    rows = {row[0]: (float(row[1]), float(row[2])) for row in re.findall(line, result.stdout, re.M)}
    assert {*rows} == {"as it is", *forms.FORMS}
    small, smaller, better = (
        rows[f"{short_side} g32 b7 fastdecode{crf}"] for short_side, crf in ((224, ""), (128, ""), (128, " crf18"))
    )
    assert small[0] > smaller[0] < better[0]
    assert 25 < smaller[1] < better[1] < 60


@pytest.mark.slow
def test_frames_of_a_form_are_of_the_kinds_that_it_says(tmp_path: Path) -> None:
    """All frames but every eighth are unreferenced B-frames, whatever the source's frame types."""
    source = kinetics_like.make(tmp_path, 1, seconds=2)[0]
    copy = forms.encode(source, tmp_path / "copy.mp4", forms.Form(64, 32, 7))
    with av.open(copy) as container:
        kinds = "".join("?IPB"[int(frame.pict_type)] for frame in container.decode(video=0))
    assert kinds[:33] == "I" + 3 * "BBBBBBBP" + "BBBBBBP" + "I"


@pytest.mark.slow
def test_comm_counts_what_the_formula_says(tmp_path: Path) -> None:
    """With two real processes; the program fails if a count and the formula differ."""
    result = run_tool("benchmark", "comm", "--recipe", "demo", "--ranks", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^  (\w[\w ]*?) +([\d,]+) bytes counted +([\d,]+) by formula$", result.stdout, re.M)
    assert [name for name, _, _ in rows] == ["gradients", "batch norm", "keys", "loss", "queue"] * 2
    assert all(counted == formula for _, counted, formula in rows)
    sizes = [int(counted.replace(",", "")) for _, counted, _ in rows]
    assert sizes[0] == 2 * sizes[5] > 0, "bfloat16 halves the gradients"
    assert sizes[1:4] == sizes[6:9]
    assert min(sizes[1:4]) > 0
    assert sizes[4] == 0
    assert re.search(r"4 processes:\n +fp32: gradients \S+, batch norm \S+, keys \S+, loss \S+; together", result.stdout)


@pytest.mark.slow
def test_augment_compares_results_and_says_what_is_not_there(tmp_path: Path) -> None:
    sizes = ["--clips", "2", "--frames", "2", "--height", "40", "--width", "50", "--size", "32", "--rounds", "1"]
    result = run_tool("benchmark", "augment", *sizes, "--repeats", "1", "--threads", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^rivals: torchvision \S+, kornia .+, torchaug not there$", result.stdout, re.M)
    assert "2 clips of 2 x 40 x 50 -> 32, medians of 1 calls: 1 rounds of 1" in result.stdout
    for view in ("view1", "view2"):
        rows = result.stdout.split(f"{view}, 1 thread\n")[1].split("\n\n")[0]
        for name in ("ours", "torchvision"):
            (row,) = re.findall(rf"^{name} .*$", rows, re.M)
            assert float(row.split()[-1]) < 2, "in 255ths"


@pytest.mark.slow
def test_the_gpu_checks_run_on_a_cpu_and_each_ends_alone(tmp_path: Path) -> None:
    names = "environment,augmentation,networks,step,memory,precision,evaluation"
    result = run_tool("benchmark", "gpu", "device=cpu", "size=tiny", f"only={names}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    ends = {line["check"]: line["ended"] for line in lines if "check" in line}
    assert ends == dict.fromkeys(names.split(","), 0), result.stderr
    assert all(line["share_off_by_1e-4"] < 1e-3 for line in lines if "view" in line)
    assert {line["overlap"] for line in lines if "step_of" in line} == {True, False}


def test_a_gpu_check_is_killed_at_its_limit_with_its_children(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    ended = gpu.run_check("environment", "cpu", "tiny", limit=0.5)
    assert ended["ended"] == "killed at its limit of 0 s"
    assert time.monotonic() - began < 5
    assert gpu.run_check("no such check", "cpu", "tiny", limit=60)["ended"] == 1
    assert "KeyError" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("part=3", "part=3: 1, 2 or 1,2"),
        ("parts=1", "'parts=1': give part=, device=, size=, only="),
        ("only=speed", "only=speed: speed is none of environment, "),
        ("size=large", "size=large must be full or tiny"),
    ],
)
def test_unknown_words_of_the_gpu_checks_are_refused(word: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        gpu.run(argparse.Namespace(words=[word]))
