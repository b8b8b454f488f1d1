"""The folder of a run: checked, locked, and with a `status.json` while the run is going.

Nothing is written before every check of the set-up has passed: an existing run is locked at once, since it is read; a new
folder is made by `begin`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import OmegaConf

from .. import distributed
from ..errors import InputError, Stopped
from .files import write_atomically
from .lock import LOCK_FILE, RunLock
from .status import Status, owner
from .stop import STOP_FILE, StopRequest
from .watchdog import StepWatch

LONGER = "; a run cannot be made longer, for its learning rate ends at 0: extend=EPOCHS of tools/pretrain.py trains one on"


class RunFolder:
    """A context manager around a run from its set-up to its end.

    cfg: the options of a training program. Options that do not change the trained weights (`system`, `monitor`, `out`)
    may differ from those of an earlier start. stop: its file is removed once the folder is locked.

    Entering raises InputError for a folder with a run of another recipe, with other files, or with a running run.
    """

    def __init__(self, path: Path, cfg: Any, stop: StopRequest) -> None:
        self.path = path
        self.stop = stop
        self.cfg = cfg
        self.known = False
        self.status = Status(path)
        self._lock = RunLock(path, owner())
        self._watch = StepWatch(path, self.status, cfg.system.step_timeout)

    def __enter__(self) -> RunFolder:
        self.known = check_run_folder(self.path, self.cfg)
        if self.known and distributed.rank() == 0:
            self._occupy()
            self.status.begin()
        return self

    def _occupy(self) -> None:
        """Make the folder if it is new, and lock it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            self.stop.forget_file()
            if not self.known:
                if check_run_folder(self.path, self.cfg):
                    raise InputError(f"another run has begun in out={self.path} meanwhile: give the command again")
                write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.cfg)))
        except OSError as error:
            raise InputError(f"out={self.path} cannot be written ({error.strerror}): choose another out=") from error

    def begin(self, step: int, total_steps: int) -> None:
        """Make a new folder, and write where the run stands. Called by all ranks, after all checks."""
        distributed.barrier()  # nobody looks at the folder any more
        if distributed.rank() == 0:
            if not self.known:
                self._occupy()
            self.status.begin(step, total_steps)
        self._watch.start()

    def at(self, step: int) -> None:
        """Note that the run is at `step`. Called every step; writes every few seconds and starts the step's time limit."""
        self._watch.at(step)
        if distributed.rank() == 0 and self.status.at(step):
            self._require_folder()
            self._lock.keep()

    def _require_folder(self) -> None:
        if not (self.path / "config.yaml").is_file():
            raise Stopped(f"the run folder {self.path} was removed or renamed while the run was going: its files are not there")

    def pause(self) -> None:
        """Suspend the time limit of a step, e.g. for an evaluation; `at` ends the pause."""
        self._watch.pause()
        if distributed.rank() == 0:
            self._require_folder()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.end()
        self.status.__exit__(kind, error, trace)
        self._lock.release()


def check_run_folder(folder: Path, cfg: Any) -> bool:
    """Return whether `folder` holds a run with the same options, to be continued; False if it is new or empty.

    Raises InputError for a folder with a run of another recipe, or with other files.
    """
    if not folder.exists() or (folder.is_dir() and all(_is_left_over(path.name) for path in folder.iterdir())):
        return False
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"out={folder} is not empty and no run folder (no config.yaml in it): choose another out=")
    # An option that the earlier version did not have had its default.
    old = flatten(OmegaConf.to_container(OmegaConf.structured(type(cfg)), enum_to_str=True))
    old |= flatten(OmegaConf.to_container(OmegaConf.load(path)))
    new = flatten(OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True))
    differing = [
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[0] not in ("system", "monitor", "out") and key != "data.changed"
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"out={folder} holds a run of another recipe ({'; '.join(differing[:3])}{more}): choose another out=, or "
            "give the same options to continue it" + (LONGER if old.get("optim.epochs") != new.get("optim.epochs") else "")
        )
    return True


def length_of(folder: Path, videos: int) -> int:
    """Return the steps of the whole run in `folder` on so many videos, 0 where none began."""
    options = stored_options(folder)
    return videos // options["optim.batch"] * options["optim.epochs"] if options else 0


def stored_options(folder: Path) -> dict[str, Any]:
    """Return the options of the run in `folder` by dotted name; empty without one."""
    path = folder / "config.yaml"
    return flatten(OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}


def _is_left_over(name: str) -> bool:
    """Whether an interrupted start may leave such a file."""
    return name == STOP_FILE or name.startswith((LOCK_FILE, ".writing_", ".config.yaml"))  # .lock.held, too


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted name."""
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {k: v for name, value in values.items() for k, v in flatten(value, f"{prefix}{name}.").items()}
