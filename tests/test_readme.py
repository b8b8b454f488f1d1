"""README and docs agree with the repository: commands, options, paths, links, recipes, and the tree of folders."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, compose_program
from launch.check import Check
from launch.options import PLACES, read_options
from test_configs import PROGRAMS as SCHEMAS

from sce_video.command_line import read_words

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = "\n".join(page.read_text() for page in PAGES)
FOLDERS = "sce_video|configs|docs|tools|tests|examples|data_prep|" + "|".join(
    path.parent.name for path in sorted((ROOT / "sce_video").glob("*/__init__.py"))
)
# Folders that a user's run or program writes, not ours.
WRITTEN = ("runs/mine", "runs/finetune_own", "runs/own", "runs/demo", "runs/k400", "runs/x", "runs/soak", "runs/sweep")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./*]*)`", text) + re.findall(r"python ((?:data_prep|examples)/\w+\.py)", text)
    for path in paths:
        found = [match for base in (ROOT, ROOT / "sce_video") for match in base.glob(path.rstrip("/"))]
        assert found or path.startswith(WRITTEN), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in README


def test_readme_is_short_and_shows_pictures() -> None:
    assert README.count("\n") <= 130
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert sum((ROOT / picture).stat().st_size for picture in pictures) < 300_000


def test_commands_name_tools_and_options_that_exist() -> None:
    text = ALL.replace("\\\n", " ")
    commands = re.findall(r"python tools/(\w+)\.py([^\n`]*)|\d tools/(\w+)\.py([^\n`]*)", text)
    found = [(tool or other, arguments or more) for tool, arguments, other, more in commands]
    assert {tool for tool, _ in found} == {path.stem for path in (ROOT / "tools").glob("*.py")}
    for tool, arguments in found:
        if tool == "benchmark":
            assert (ROOT / f"tools/benchmarks/{arguments.split()[0]}.py").exists(), arguments
            continue
        if tool == "checkpoint":
            assert arguments.split()[0] in ("digest", "inspect", "export", "cache", "precise-bn")
            continue
        if tool in ("compare", "models"):  # they have options of their own
            continue
        if tool == "plan":  # options of pretraining, and two of its own
            tool, arguments = "pretrain", re.sub(r"(gpus|memory)=\S+", "", arguments)
        if tool == "launch":
            tool, _, arguments = arguments.partition(" -- tools/")[2].partition(".py ")
            if tool not in SCHEMAS:
                continue
        if "..." not in arguments or tool == "pretrain":
            compose_program(tool, SCHEMAS[tool], *read_words(overrides_of(tool, arguments), SCHEMAS[tool]))


def overrides_of(tool: str, arguments: str) -> list[str]:
    """The options of a command, and those that its page leaves out."""
    overrides = [item for item in re.findall(r"[\w.]+=[^\s`']+", arguments) if not item.endswith("=...")]
    if "--config-dir" in arguments:  # a recipe of the user's
        overrides = [item for item in overrides if not item.startswith("recipe=")]
    if tool == "pretrain" and "data.train=" not in arguments:
        overrides.append("data.train=x")
    if "predict=" in arguments:  # which needs no lists
        overrides += ["train=''", "test=''"]
    return overrides


def test_commands_for_launching_are_read() -> None:
    commands = re.findall(r"tools/launch\.py (\w+)((?: \w+=\S+)*)", ALL)
    assert {place for place, _ in commands} == {*PLACES, "check"}
    for place, options in commands:
        if options:  # else the sentence only names the launcher
            read_options(options.replace("...", "x").replace("=N", "=1").split(), PLACES.get(place, Check))


def test_every_recipe_is_listed() -> None:
    results = (ROOT / "docs/results.md").read_text()
    for path in (ROOT / "configs").glob("*/recipe/*.yaml"):
        assert f"`{path.stem}`" in results


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_(?:LINES|TABLE)\b|\bTODO\b", ALL)


def tree() -> list[str]:
    """The lines of README's tree."""
    return README.partition("## Where things are")[2].split("```")[1].strip("\n").splitlines()


def test_tree_lists_the_folders_that_exist() -> None:
    package = ROOT / "sce_video"
    top = [line.split()[0] for line in tree() if not line.startswith(" ")]
    ours = {"sce_video", "tools", "configs", "data_prep", "examples", "docs", "tests"}
    assert set(top) == {f"{name}/" for name in ours}
    assert all((ROOT / name).is_dir() for name in ours)
    rooms = {line.split()[0] for line in tree() if re.match(r" +\w+/ ", line)}
    folders = {path.parent.name + "/" for path in package.rglob("__init__.py")} - {"sce_video/"}
    assert rooms == folders
    files = [line for line in tree() if line.startswith("  ") and not re.match(r" +\w+/ ", line)]
    listed = {name for line in files for name in re.findall(r"(?<!/)\b\w+\.py\b", line)}
    assert listed - {"embed.py"} <= {path.name for path in package.glob("*.py")} | {"embed.py"}
    assert {path.name for path in package.glob("*.py")} - {"__init__.py"} <= listed


def test_tree_says_what_each_folder_says_of_itself() -> None:
    for init in (ROOT / "sce_video").rglob("*/__init__.py"):
        docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
        first = " ".join(docstring.splitlines()[0].lower().split())
        (line,) = [line for line in tree() if line.split()[0] == f"{init.parent.name}/"]
        said = line.partition("/")[2].strip().lower()
        assert said in first, f"README says {said!r} of {init.parent.name}/, its __init__ {first!r}"
