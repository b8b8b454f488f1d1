"""The README tells the truth about what is here."""

from __future__ import annotations

import re

from benchmarks import augment, comm, decode, evaluate, retrieval
from conftest import ROOT, compose_program
from launch.check import Check
from launch.options import PLACES, read_options
from test_configs import PROGRAMS as SCHEMAS

PARTS = {"augment": augment, "comm": comm, "decode": decode, "evaluate": evaluate, "retrieval": retrieval}
README = (ROOT / "README.md").read_text()


def test_paths_exist() -> None:
    paths = re.findall(r"`((?:sce_video|configs|docs|tools|tests|data|models|methods)/[\w./*]*)`", README)
    assert len(paths) > 10
    for path in paths:
        found = [match for base in (ROOT, ROOT / "sce_video") for match in base.glob(path.rstrip("/"))]
        assert found, path


def test_commands_name_tools_and_options_that_exist() -> None:
    text = README.replace("\\\n", " ")
    commands = re.findall(r"python tools/(\w+)\.py([^\n`]*)|\d tools/(\w+)\.py([^\n`]*)", text)
    found = [(tool or other, arguments or more) for tool, arguments, other, more in commands]
    assert {tool for tool, _ in found} == {path.stem for path in (ROOT / "tools").glob("*.py")}
    for tool, arguments in found:
        if tool == "benchmark":
            assert arguments.split()[0] in PARTS
            continue
        if tool == "checkpoint":
            assert arguments.split()[0] in ("digest", "inspect", "export")
            continue
        if tool == "launch":
            tool, _, arguments = arguments.partition(" -- tools/")[2].partition(".py ")
            if not tool:
                continue
        overrides = re.findall(r"[\w.]+=[^\s`']+", arguments)
        if tool == "pretrain" and "data.train=" not in arguments:
            overrides.append("data.train=x")
        compose_program(tool, SCHEMAS[tool], *overrides)


def test_every_recipe_is_listed() -> None:
    for path in (ROOT / "configs").glob("*/recipe/*.yaml"):
        assert f"`{path.stem}`" in README


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_(?:LINES|TABLE)\b", README)


def test_commands_for_launching_are_read() -> None:
    text = README + (ROOT / "docs/launch.md").read_text()
    commands = re.findall(r"tools/launch\.py (\w+)((?: \w+=\S+)*)", text)
    assert {place for place, _ in commands} == {*PLACES, "check"}
    for place, options in commands:
        if options:  # else only the place is spoken of
            read_options(options.replace("...", "x").replace("=N", "=1").split(), PLACES.get(place, Check))
