"""The house rules for data_prep: what it may import from the package, sizes, help, no shell, nothing broad."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = ROOT / "data_prep"
MODULES = sorted(FOLDER.rglob("*.py"))
PROGRAMS = [path for path in MODULES if "__main__" in path.read_text() and "is no program" not in path.read_text()]
ALLOWED = (
    *("data.manifest", "data.decode", "data.health", "data.segments", "data.readers.media", "data.readers.frame_folder"),
    *(
        "data.readers.frame_index",
        "data.readers.headers",
        "data.readers.headers.mp4",
        "data.readers.headers.one_frame",
        "data.readers.orientation",
        "data.readers.picture",
        "errors",
        "runs.files",
        "runs.stop",
    ),
)
# A module imports from its own folder and from the folders before it; "" are the modules that all programs share.
LAYERS = ("", "jobs", "media", "annotations")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = path.parent.relative_to(FOLDER)
    allowed = LAYERS if path in PROGRAMS else LAYERS[: LAYERS.index("" if own == Path() else own.name) + 1]
    programs = {program.stem for program in PROGRAMS}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert name not in programs, "programs do not import each other"
            folder = name.split(".")[0]
            assert folder not in LAYERS or folder in allowed, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("folder", [FOLDER, *sorted({path.parent for path in MODULES} - {FOLDER})], ids=lambda f: f.name)
def test_folders_are_small_and_say_what_they_are_for(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 14
    if folder != FOLDER:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_from_the_package_are_few(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sce_video":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "sce_video"}
    found = {name for name in found if not any(f"{name}.".startswith(f"sce_video.{part}.") for part in ALLOWED)}
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_small_and_catch_what_they_name(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert "shell=True" not in text
    assert "os.system" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{node.name} is longer than 60 lines and its docstring"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            assert not (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_help_shows_a_command_first(path: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(path), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    first = [line for line in result.stdout.splitlines() if line][1]
    assert first.startswith(f"python data_prep/{path.name} ")


def test_a_reader_that_stops_early_gets_whole_lists(tmp_path: Path) -> None:
    """`... | head -0`: no traceback, and everything is written."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").touch()
    command = [sys.executable, str(ROOT / "data_prep/folder.py"), "--videos", "videos", "--out", "out"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(command, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["all.csv", "summary.json"]


def test_commands_of_the_readme_name_programs_and_options_that_exist() -> None:
    text = (ROOT / "data_prep/README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^(?:\S+ )*?python data_prep/(\w+)\.py([^\n]*)", text, re.MULTILINE)
    assert {name for name, _ in commands} <= {path.stem for path in PROGRAMS}
    assert {"ucf101", "hmdb51", "kinetics", "folder", "lists"} <= {name for name, _ in commands}
    for name, arguments in commands:
        known = "\n".join(path.read_text() for path in MODULES)
        for option in re.findall(r"(--[a-z-]+)", arguments):
            assert f'"{option}"' in known, (name, option)
