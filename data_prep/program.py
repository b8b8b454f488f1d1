"""What the programs here share on the command line: help with its commands first, and one line on stderr for bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from endings import printable, told

from sce_video.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_BROKEN_PIPE = 141  # as a shell has it


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser whose help is the program's docstring (its commands first), then the options."""
    return argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_videos_and_out(options: argparse.ArgumentParser) -> None:
    """Add the options that every program for lists has: --videos, --out, --probe."""
    options.add_argument(
        "--videos", required=True, metavar="FOLDER", help="the folder that holds the videos; only read"
    )
    options.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the lists go; nothing in it is overwritten"
    )
    add_probe(options)


def add_probe(options: argparse.ArgumentParser) -> None:
    """Add --probe."""
    options.add_argument(
        "--probe",
        nargs="?",
        type=positive,
        const=sys.maxsize,
        default=0,
        metavar="N",
        help="open N videos of each list, drawn evenly (all without N), and report seconds, sizes, codecs, rates",
    )


def positive(text: str) -> int:
    """Read a whole number above 0 (for argparse)."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line's arguments; bad input becomes one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        with told():
            main(sys.argv[1:])
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:  # `| head`: everything was written before it was printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
