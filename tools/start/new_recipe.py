"""Write a recipe of the user's own, to begin with: a copy of one of ours under another name, and the command that uses it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sce_video.command_line import CONFIGS
from sce_video.errors import InputError

FLAG = "--new-recipe"
FOLDER = Path("my_recipes")


def write_recipe(program: str, arguments: Sequence[str]) -> None:
    """Write my_recipes/recipe/NAME.yaml and print how it is used. arguments: --new-recipe NAME [recipe=ORIGINAL].

    Raises InputError for a name that is none, an unknown recipe, other words, and a file that is there already.
    """
    words = [word for word in arguments if word not in (FLAG, "--recipe")]
    names = [word.removeprefix(f"{FLAG}=") for word in words if not word.startswith("recipe=")]
    original = next((word.removeprefix("recipe=") for word in words if word.startswith("recipe=")), "demo")
    if len(names) != 1 or not re.fullmatch(r"\w+", names[0], re.ASCII):
        raise InputError(f"{FLAG} needs one name of letters, digits and _: write {FLAG} mine recipe={original}")
    known = sorted(path.stem for path in (CONFIGS / program / "recipe").glob("*.yaml"))
    if original not in known:
        raise InputError(f"recipe {original!r} is not one of {', '.join(known)}")
    path = FOLDER / "recipe" / f"{names[0]}.yaml"
    if path.exists() or names[0] in known:
        raise InputError(f"{str(path) if path.exists() else names[0]!r} is there already: choose another name")
    text = (CONFIGS / program / "recipe" / f"{original}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    values = lines[next(index for index, line in enumerate(lines) if line and not line.startswith("#")) :]
    values = [f"name: {names[0]}" if line.startswith("name:") else line for line in values]
    head = ["# @package _global_", f"# {names[0]}: begun as a copy of {original}; change values here, not in the original"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, *values]) + "\n", encoding="utf-8")
    videos = "data.train=FOLDER" if program == "pretrain" else "train=LIST test=LIST checkpoint=RUN"
    print(f"written: {path}; use it: python tools/{program}.py --config-dir {FOLDER} recipe={names[0]} {videos}")
