"""Complete a command that classifies videos (`predict=`): it needs no lists, and tests as the run of the classifier did."""

from __future__ import annotations

from pathlib import Path

from sce_video.command_line import given_values, override
from sce_video.runs.folder import stored_options

TESTING = ("clips_per_video", "num_crops", "size")


def complete(arguments: list[str]) -> list[str]:
    """Return the command line of tools/finetune.py, with `predict=` completed by the options of the run in `checkpoint=`."""
    given = given_values(arguments)
    if not given.get("predict"):
        return arguments
    folder = Path(str(given.get("checkpoint", "")))
    stored = stored_options(folder) or stored_options(folder.parent)  # checkpoint=RUN/best
    known = {f"testing.{name}": stored.get(f"testing.{name}") for name in TESTING}
    added = [override(key, value) for key, value in {"train": "", "test": "", **known}.items() if value is not None]
    return [*(word for word in added if word.partition("=")[0] not in given), *arguments]
