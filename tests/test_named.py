"""What an option names outside the package is imported, or refused in one true sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sce_video.errors import InputError
from sce_video.models import backbones
from sce_video.models.named import load_named


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_name_of_a_module_or_of_a_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_named("json.decoder:JSONDecoder", "x").__name__ == "JSONDecoder"
    file = write(
        tmp_path / "a folder: mine/own.py", "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    rate: float = 0.5\n"
    )
    mine = load_named(f"{file}:Mine", "x")
    assert mine().rate == 0.5
    monkeypatch.chdir(tmp_path)
    assert load_named("a folder: mine/own.py:Mine", "x") is mine, "a file is imported once, however it is named"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("json", "write package.module:name, or path/to/file.py:name"),
        ("json:", "write package.module:name"),
        (":loads", "write package.module:name"),
        ("json:load s", "write package.module:name"),
        ("json:lods", "json has no 'lods'; did you mean 'loads'"),
        ("..json:loads", "is no name of a module; a file ends in .py"),
        ("my/file:loads", "is no name of a module; a file ends in .py"),
        ("nowhere_at_all.x:y", "cannot be imported .*is its folder on PYTHONPATH"),
        ("missing.py:y", "there is no file /.*missing.py$"),
        ("broken.py:y", "broken.py cannot be imported: SyntaxError"),
        ("needs.py:y", "needs.py cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("needs:y", "ModuleNotFoundError: No module named 'nowhere_at_all'.: an error inside needs"),
        ("binary.py:y", "binary.py cannot be imported: "),
    ],
)
def test_what_cannot_be_loaded_is_refused(text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "broken.py", "def y(:\n")
    write(tmp_path / "needs.py", "import nowhere_at_all\n")
    (tmp_path / "binary.py").write_bytes(b"x = '\xff\xfe'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=sentence) as caught:
        load_named(text, "method")
    assert str(caught.value).startswith(f"method={text}")
    assert "\n" not in str(caught.value)


def test_a_file_that_failed_is_imported_anew(tmp_path: Path) -> None:
    file = write(tmp_path / "own.py", "import nowhere_at_all\n")
    with pytest.raises(InputError):
        load_named(f"{file}:value", "x")
    assert str(file) not in sys.modules
    write(file, "value = 3  # mended\n")
    assert load_named(f"{file}:value", "x") == 3


def test_a_backbone_comes_from_a_file(tmp_path: Path) -> None:
    text = "from torch import nn\ndef build():\n    return nn.Flatten(), 7\n"
    assert backbones.build(f"{write(tmp_path / 'mine.py', text)}:build")[1] == 7
    with pytest.raises(InputError, match=r"backbone 'r3d19' is not one of r3d18, .*nor module:function or file.py:function"):
        backbones.build("r3d19")
