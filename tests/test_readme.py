"""The README tells the truth about what is here."""

from __future__ import annotations

import re

from conftest import ROOT, compose_pretrain

README = (ROOT / "README.md").read_text()


def test_paths_exist() -> None:
    paths = re.findall(r"`((?:sce_video|configs|tools|tests|data|models|methods)/[\w./*]*)`", README)
    assert len(paths) > 10
    for path in paths:
        found = [match for base in (ROOT, ROOT / "sce_video") for match in base.glob(path.rstrip("/"))]
        assert found, path


def test_commands_name_tools_and_options_that_exist() -> None:
    commands = re.findall(r"tools/(\w+)\.py([^\n`]*)", README)
    assert {tool for tool, _ in commands} == {"pretrain", "retrieval"}
    for tool, arguments in commands:
        assert (ROOT / f"tools/{tool}.py").is_file()
        overrides = re.findall(r"[\w.]+=[^\s`]+", arguments)
        if tool == "pretrain":
            compose_pretrain(*overrides, *([] if "data.train=" in arguments else ["data.train=x"]))


def test_every_recipe_is_listed() -> None:
    for path in (ROOT / "configs/pretrain/recipe").glob("*.yaml"):
        assert f"`{path.stem}`" in README


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_(?:LINES|TABLE)\b", README)
