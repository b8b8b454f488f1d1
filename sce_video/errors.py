"""How a program ends and what it reports: exceptions meant for users, their exit codes, and the logger of all messages.

A message names what was given, the rule, and what to do. Programs print it as one line; everything else is a bug of ours
or of the machine, keeps its traceback and ends with 1. Batch scripts start the same command again after 75, never after 70
(`status.json` says the same, for launchers that hide the codes of what they launch).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_UNEXPECTED = 1
EXIT_DO_NOT_REPEAT = 70  # EX_SOFTWARE: the same would happen again
EXIT_CONTINUE_LATER = 75  # EX_TEMPFAIL: the same command goes on from here
_MISSING = "???"  # OmegaConf's mark of an option without a value


class _StderrHandler(logging.Handler):
    """Writes one line per message to stderr, `warning: ...` or `error: ...`, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        line = printable(record.getMessage())
        if record.levelno > logging.INFO:
            line = f"{record.levelname.lower()}: {line}"
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


log = logging.getLogger("sce_video")
if not log.handlers:
    log.addHandler(_StderrHandler())
    log.setLevel(logging.INFO)
    log.propagate = False  # one line per message, also where the root logger has handlers


def printable(text: str) -> str:
    """Return `text` on one line: characters that a terminal, a log or a web page should not receive become \\x escapes.

    File names may hold any of them: ESC sequences that write over lines, newlines that forge one.
    """
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class InputError(ValueError):
    """Bad input: an option, a file, a folder. The message and `more` lines are all that the user is shown. Exit code 70."""

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message)
        self.more = more


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with InputError for a command that it cannot read, so that bad input has one exit code everywhere."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: --help shows commands and options")


class Stopped(RuntimeError):
    """Training cannot go on, though the input was accepted: non-finite loss, too many unreadable videos. Exit code 70."""


class Preempted(RuntimeError):
    """Training was asked to stop and has saved where it is; the same command continues it. Exit code 75."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that `error` ended."""
    if isinstance(error, (InputError, Stopped)) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return EXIT_DO_NOT_REPEAT
    return EXIT_CONTINUE_LATER if isinstance(error, Preempted) else EXIT_UNEXPECTED


def given(*values: Any) -> bool:
    """Whether no value is missing: while OmegaConf builds a schema, fields still hold its marker for missing ones."""
    return all(value != _MISSING for value in values)


def require(value: Any, name: str, rule: Callable[[Any], bool], words: str) -> None:
    """Raise InputError unless the rule holds for an option's value, where there is one."""
    if given(value) and not rule(value):
        raise InputError(f"{name} ({value}) must be {words}")
