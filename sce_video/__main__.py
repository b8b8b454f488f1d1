"""The console program `sce-video`, also `python -m sce_video`: one word chooses a program of `tools/` or `data_prep/`.

    sce-video pretrain data.train=/data/my_videos
    sce-video evaluate checkpoint=runs/demo train=synthetic test=synthetic
    sce-video prepare kinetics --help
    torchrun --nproc-per-node 8 -m sce_video pretrain recipe=sce_r3d18_k400 data.train=train.csv

The files run are those of the repository: beside the package in a checkout, inside it after an installation.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PREPARE = "prepare"  # sce-video prepare NAME: a program of data_prep/


def folder_of(name: str) -> Path:
    """Return the folder `tools` or `data_prep`: of the installed package, or of the checkout that this is."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[1] / name


def programs(name: str) -> dict[str, Path]:
    """Return the programs in such a folder by name: the files that do something when they are run."""
    files = sorted(folder_of(name).glob("*.py"))
    texts = {path: path.read_text() for path in files}
    runs = (path for path, text in texts.items() if '__name__ == "__main__"' in text and "is no program" not in text)
    return {path.stem.replace("_", "-"): path for path in runs}


def main(arguments: list[str] | None = None) -> None:
    """Run the program that the first word names with the rest of the command line; exit codes are the program's."""
    words = sys.argv[1:] if arguments is None else arguments
    folder = "data_prep" if words[:1] == [PREPARE] else "tools"
    words = words[1:] if folder == "data_prep" else words
    known = programs(folder)
    name = words[0].replace("_", "-") if words else "--help"
    if name not in known:
        helped = name in ("-h", "--help")
        every = [*known, *([PREPARE] if folder == "tools" else [])]
        text = f"programs: {', '.join(every)}; PROGRAM --help shows one's options"
        print(
            f"{__doc__}\n{text}" if helped else f"error: {name!r} is none of the {text}",
            file=sys.stdout if helped else sys.stderr,
        )
        sys.exit(0 if helped else 70)
    path = known[name]
    sys.argv = [str(path), *words[1:]]
    sys.path.insert(0, str(path.parent))  # as `python tools/pretrain.py` does
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
