"""Text uses the terms of PyTorch's documentation; phrases that readers from outside do not know fail here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

# Pattern -> what to write instead. A space matches a line break too.
PRIVATE_PHRASES = {
    r"\bsays? so\b": "raise, log, print",
    r"\b(?:is|are|was|were|be|been|not|unless) (?:told|said)\b": "raise, log, print; by default",
    r"\bwhole or not (?:there|at all)\b": "atomic",
    r"\bof these(?: (?:is|are|was|were|has|have|can|may|must|will|do|does)\b|[,.;:)])": "the noun",
    r"\bsuch that\b": "so that, where",
    r"\breturn (?:what|which|where|by how)\b": "Return and a noun",
    r'"""what\b|\bwhat (?:tells|makes)\b': "a noun or an imperative",
    r"(?<!in\s)(?<!in-)(?<!into\s)(?<!take\s)(?<!takes\s)\bplace\b": "folder, index, position, target",
}
FOLDERS = ("sce_video", "tools", "data_prep", "configs", "docs")
FILES = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".sh", ".md", ".yaml")]


def private_phrases(text: str) -> list[str]:
    """Return the line, the phrase and what to write instead for every private phrase."""
    return [
        f"line {text.count(chr(10), 0, found.start()) + 1}: {' '.join(found[0].split())!r}, better: {better}"
        for pattern, better in PRIVATE_PHRASES.items()
        for found in re.finditer(pattern.replace(" ", r"\s+(?:#\s+)?"), text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", sorted([*FILES, ROOT / "README.md"]), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_phrases(path: Path) -> None:
    assert private_phrases(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('"""Return what tells this call from those that need other machine code."""', 2),
        ("where `flips` says so", 1),
        ("unless\n    # told otherwise", 1),
        ("checkpoints are whole or not\nthere", 1),
        ("Most of these are small. None of these.", 2),
        ("one of these options; in place; takes place; Return whether it is done; replaced", 0),
    ],
)
def test_private_phrases_are_found(text: str, count: int) -> None:
    assert len(private_phrases(text)) == count
