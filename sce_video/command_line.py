"""From the command line to a checked object, and from an error to one line and an exit code.

`typed` merges what Hydra composed into a fresh schema, which refuses unknown keys even when they were added with `+`
(Hydra alone accepts `+sce.coef=0.5` and drops it silently).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import hydra
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from .errors import InputError, Stopped

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 70  # do not start again: the same will happen

# Hydra 1.3 warns without version_base, 1.4 warns with it.
_VERSION: dict[str, Any] = {"version_base": None} if hydra.__version__.startswith("1.3") else {}

S = TypeVar("S")


def option_names(schema: type, prefix: str = "") -> list[str]:
    """Return the dotted names of all options of a schema, sections included."""
    names = []
    hints = get_type_hints(schema)
    for item in fields(schema):
        names.append(prefix + item.name)
        if is_dataclass(hints[item.name]):
            names += option_names(hints[item.name], f"{prefix}{item.name}.")  # type: ignore[arg-type]
    return names


def _unknown(key: str, schema: type) -> InputError:
    names = option_names(schema)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    last = [name for name in names if name.split(".")[-1] == key.split(".")[-1]]
    nearest = last[0] if last else close[0] if close else None
    hint = f"did you mean {nearest}?" if nearest else "see --cfg job for all options"
    return InputError(f"unknown option {key!r}: {hint}")


def typed(composed: DictConfig, schema: type[S]) -> S:
    """Return what Hydra composed as a checked object of `schema`.

    Raises InputError: unknown key (the nearest known one is named), wrong type, missing value, a broken rule.
    """
    try:
        values = OmegaConf.to_container(composed, throw_on_missing=True)
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except MissingMandatoryValue as error:
        raise InputError(f"option {error.full_key} must be given: {error.full_key}=...") from error
    except ConfigKeyError as error:
        raise _unknown(str(error.full_key or error.key), schema) from error
    except OmegaConfBaseException as error:
        raise InputError(f"option {error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(result, schema)
    return result


CONFIGS = Path(str(resources.files("sce_video.configs")))


def check_overrides(arguments: Sequence[str], schema: type, recipes: Path) -> None:
    """Refuse unknown options, wrong types and unknown recipes on the command line before Hydra sees them."""
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    own_folder = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise InputError(
            f"cannot read {error.override!r}: write key=value, with quotes around odd characters"
        ) from error
    names = set(option_names(schema))
    for override in parsed:
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        if key == "recipe" and recipes.is_dir():
            known = sorted(path.stem for path in recipes.glob("*.yaml"))
            if not (override.is_sweep_override() or override.value() in known or own_folder):
                raise InputError(f"recipe {override.value()!r} is not one of {', '.join(known)}")
        elif key not in names:
            raise _unknown(key, schema)
        elif not override.is_delete() and not override.is_sweep_override():
            _check_value(key, override.value(), schema)


def _check_value(key: str, value: Any, schema: type) -> None:
    try:
        OmegaConf.update(OmegaConf.structured(schema), key, value)
    except OmegaConfBaseException as error:
        raise InputError(f"option {key}={value}: {str(error).splitlines()[0]}") from error


def given_options(values: Mapping[str, str], schema: type[S]) -> S:
    """Return options given as text by name as a checked object; InputError as from `typed`."""
    for key in values:
        if key not in option_names(schema):
            raise _unknown(key, schema)
    return typed(OmegaConf.create(dict(values)), schema)


def compose_options(program: str, schema: type[S], arguments: Sequence[str]) -> S:
    """Return the options that tools/<program>.py would run with; InputError where it would refuse them."""
    check_overrides(arguments, schema, CONFIGS / program / "recipe")
    folders, overrides, words = [], [], iter(arguments)
    for word in words:
        if word in ("--config-dir", "-cd"):
            folders.append(next(words, ""))
        elif word.startswith("--config-dir="):
            folders.append(word.partition("=")[2])
        else:
            overrides.append(word)
    if folders:
        overrides.append(f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]")
    ConfigStore.instance().store(name=f"{program}_schema", node=schema)
    with initialize_config_module(f"sce_video.configs.{program}", **_VERSION):
        try:
            return typed(compose("base", overrides), schema)
        except HydraException as error:
            raise InputError(f"{program}: {str(error).splitlines()[0]}") from error


def run_program(program: str, schema: type[S], action: Callable[[S], object]) -> None:
    """Compose `configs/<program>/base.yaml` with the command line and call `action` with the checked options."""
    ConfigStore.instance().store(name=f"{program}_schema", node=schema)

    @hydra.main(config_path=f"pkg://sce_video.configs.{program}", config_name="base", **_VERSION)
    def main(composed: DictConfig) -> None:
        with errors_as_exit_codes():  # inside, for Hydra turns every exception into exit code 1
            action(typed(composed, schema))

    with errors_as_exit_codes():
        check_overrides(sys.argv[1:], schema, CONFIGS / program / "recipe")
    main()


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """End the process with one line on stderr and code 2 for bad input, 70 when training had to stop."""
    try:
        yield
    except (InputError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_STOPPED)


def check_run_folder(folder: Path, cfg: Any) -> bool:
    """Return whether `folder` is a run with these very options, to be continued; False if it is new or empty.

    cfg: a training program's options. What changes nothing that is learnt (`system`, `monitor`, `out`) may differ.

    Raises InputError for a folder with a run of another recipe, or with other things.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"out={folder} is not empty and no run folder (no config.yaml in it): choose another out=")
    old = _flat(OmegaConf.to_container(OmegaConf.load(path)))
    new = _flat(OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True))
    differing = [
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[0] not in ("system", "monitor", "out")
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"out={folder} holds a run of another recipe ({'; '.join(differing[:3])}{more}): choose another out=, or "
            "give the same options to continue it"
        )
    return True


def start_run_folder(folder: Path, cfg: Any) -> None:
    """Make a new run folder with the options in it: the first thing that a run writes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
    except OSError as error:
        raise InputError(f"out={folder} cannot be written ({error.strerror}): choose another out=") from error


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {k: v for name, value in values.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
