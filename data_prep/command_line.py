"""The command line of the programs here: common options, and errors as one line on stderr with an exit code.

The exit code of bad input is that of all programs (`sce_video.errors`); docs/troubleshooting.md has the table.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from sce_video.errors import EXIT_DO_NOT_REPEAT, ArgumentParser, InputError, log

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it

_AGAIN = "and run the same command again: what is done is kept"
_ADVICE = {
    errno.ENOSPC: f"free some space {_AGAIN}",
    errno.EDQUOT: f"free some space {_AGAIN}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f) {_AGAIN}",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser whose help is the docstring of the program (commands first), then the options."""
    return ArgumentParser(
        usage=argparse.SUPPRESS, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_videos_and_out(options: argparse.ArgumentParser) -> None:
    """Add the options of every program that writes lists: --videos, --out, --probe."""
    options.add_argument("--videos", required=True, metavar="FOLDER", help="folder of the videos, which are only read")
    options.add_argument("--out", required=True, metavar="FOLDER", help="folder to write the lists to; no file is overwritten")
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
        help="open N videos of each list at equal distances (all without N); report seconds, sizes, codecs, frame rates",
    )


def positive(text: str) -> int:
    """Parse a whole number above 0 (a `type` for argparse)."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the arguments of the command line; exit with one line on stderr if the user can mend the error.

    Exit codes: 70 for InputError and for a disk that is full or read-only, 130 for Ctrl-C, 141 for a closed pipe. Every
    other exception keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        _exit_with(str(error))
    except BrokenPipeError:  # `| head`: the programs print after all files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        name = os.fsdecode(error.filename) + ": " if error.filename else ""
        _exit_with(f"{name}{os.strerror(error.errno)}: {_ADVICE[error.errno]}")
    except KeyboardInterrupt:
        log.info("stopped; run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)


def _exit_with(message: str) -> None:
    log.error(message)
    sys.exit(EXIT_DO_NOT_REPEAT)


if __name__ == "__main__":
    raise SystemExit(
        "command_line.py is no program: it reads command lines for the programs beside it; data_prep/README.md lists them"
    )
