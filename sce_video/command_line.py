"""From the command line to a checked object, and from an error to one line and an exit code.

`typed` merges what Hydra composed into a fresh schema, which refuses unknown keys even when they were added with `+`
(Hydra alone accepts `+sce.coef=0.5` and drops it silently).
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field, fields, is_dataclass, make_dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_type_hints

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from . import distributed
from .config.ranges import check_ranges
from .errors import InputError, Preempted, Stopped, exit_code, log
from .methods import METHODS, section_name
from .runs.folder import flatten

# Hydra 1.3 warns without version_base, 1.4 warns with it.
_VERSION: dict[str, Any] = {"version_base": None} if hydra.__version__.startswith("1.3") else {}

S = TypeVar("S")

# Hydra's own flags that a user may give, and those of them that the next word belongs to.
FLAGS = frozenset(
    ("-h", "--help", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "-p", "--package", "-m", "--multirun", "-cd")
    + ("--config-dir", "--info", "-i")
)
FLAGS_WITH_VALUE = frozenset(["--cfg", "-c", "-p", "--package", "-cd", "--config-dir"])
_PLAIN = re.compile(r"[\w./:@%+-]*", re.ASCII)  # values that Hydra reads as they are


def with_method(schema: type[S], arguments: Sequence[str]) -> type[S]:
    """Return pretraining's schema with the options of the method that a command line or its recipe chooses; others as they are.

    Raises InputError for an unknown method.
    """
    if not hasattr(schema, "of_method"):
        return schema
    base: Any = schema
    chosen: type[S] = base.of_method(_named("method", arguments) or _method_of_recipe(arguments) or "sce")
    return chosen


def _named(option: str, arguments: Sequence[str]) -> str:
    """Return the last value of an option in a command line as it was typed, `option=value` or `--option value`."""
    found = re.findall(rf"(?:^|\n)[-+]*{option}\s*[=\n]\s*=?\s*([^\n]+)", "\n".join(arguments))
    return found[-1].strip().strip("'\"") if found else ""


def _method_of_recipe(arguments: Sequence[str]) -> str:
    name = _named("recipe", arguments) or "demo"
    for folder in (_named("config-dir", arguments), _named("cd", arguments), str(CONFIGS / "pretrain")):
        path = Path(folder) / "recipe" / f"{name}.yaml"
        if folder and path.is_file():
            found = re.search(r"^method:\s*['\"]?([^\s'\"]+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            return found[1] if found else ""
    return ""


def _other_sections(schema: type) -> list[str]:
    """Return the sections of the methods that were not chosen: a recipe may have them, and they do not count."""
    return (
        [name for name in METHODS if name not in {item.name for item in fields(schema)}] if hasattr(schema, "of_method") else []
    )


def _store(program: str, schema: type) -> None:
    """Give Hydra the schema, with sections of other methods for what a recipe has in them."""
    others: list[Any] = [(name, dict[str, Any], field(default_factory=dict)) for name in _other_sections(schema)]
    node = make_dataclass(schema.__name__, others, bases=(schema,)) if others else schema
    ConfigStore.instance().store(name=f"{program}_schema", node=node)


def option_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the types of all options of a schema by dotted name, sections included."""
    found: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        found[prefix + item.name] = hints[item.name]
        if is_dataclass(hints[item.name]):
            found |= option_types(hints[item.name], f"{prefix}{item.name}.")  # type: ignore[arg-type]
    return found


def option_names(schema: type) -> list[str]:
    """Return the dotted names of all options of a schema, sections included."""
    return list(option_types(schema))


def override(key: str, value: object) -> str:
    """Return `key=value` as Hydra reads it: text with odd characters in quotes."""
    if not isinstance(value, str):
        return f"{key}={str(value).lower() if isinstance(value, bool) or value is None else value}".replace("=none", "=null")
    return f"{key}={value}" if value and _PLAIN.fullmatch(value) else f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    """Quote text for Hydra: backslashes count only before a quote, where they are doubled."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def read_words(arguments: Sequence[str], schema: type) -> list[str]:
    """Return the command line as Hydra reads it: `key = value` and `--key value` are `key=value`, odd text is quoted.

    Raises InputError for a word that is neither an option nor a flag.
    """
    schema = with_method(schema, arguments)
    types = {**option_types(schema), "recipe": None}
    sweep = bool({"-m", "--multirun"} & set(arguments))
    words: list[str] = []
    flags: list[str] = []  # last, for Hydra reads no options after them
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] in FLAGS:
            flags += [word, *([rest.pop(0)] if word in FLAGS_WITH_VALUE and rest else [])]
            continue
        bare = word.lstrip("-")
        alone = "=" not in bare and bool(rest) and rest[0].startswith("=")
        bare += rest.pop(0) if alone else ""
        key, sign, value = bare.partition("=")
        if word.startswith("-") and key not in types:
            raise _unknown(key, schema)
        waits = key.strip() in types and not value and (bool(sign) or word.startswith("-"))
        if waits and rest and rest[0] not in FLAGS and (alone or "=" not in rest[0]):
            sign, value = "=", rest.pop(0)
        if not sign and not word.startswith("~"):
            raise _no_option(word, words, types)
        words.append(_for_hydra(key, value, types, sweep=sweep) if sign else word)
    return [*words, *flags]


def _for_hydra(key: str, value: str, types: Mapping[str, Any], *, sweep: bool) -> str:
    """Return `key=value`, quoted where the option is text with odd characters."""
    key, value = key.strip(), value.strip() if types.get(key.strip()) is not str else value
    given_as_hydra_reads = value[:1] in ("'", '"') and value[-1:] == value[:1] or "${" in value or (sweep and "," in value)
    if types.get(key.lstrip("+")) is not str or not value or given_as_hydra_reads:
        return f"{key}={value}"
    return override(key, os.path.expanduser(value) if value.startswith("~/") else value)


def _no_option(word: str, before: Sequence[str], types: Mapping[str, Any]) -> InputError:
    if word in types:
        return InputError(f"option {word} has no value: write {word}=VALUE")
    if before and os.path.exists(f"{before[-1].partition('=')[2]} {word}"):
        return InputError(f"a name with blanks needs quotes for the shell: write '{before[-1]} {word}'")
    first = next(name for name in ("data.train", "data", "checkpoint") if name in types)
    return InputError(f"cannot read {word!r}: write option=value, e.g. {first}={word}")


def _unknown(key: str, schema: type) -> InputError:
    names, section = option_names(schema), key.split(".")[0]
    if section in _other_sections(schema):
        return InputError(
            f"option {key!r} belongs to method={section}, which is not the chosen one: leave it out, or choose that"
        )
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    last = [name for name in names if name.split(".")[-1] == key.split(".")[-1]]
    nearest = last[0] if last else close[0] if close else None
    hint = f"did you mean {nearest}?" if nearest else "see --cfg job for all options"
    return InputError(f"unknown option {key!r}: {hint}")


def typed(composed: DictConfig, schema: type[S]) -> S:
    """Convert a composed Hydra config into a checked object of `schema`.

    Raises InputError: unknown key (the nearest known one is named), wrong type, missing value, a broken rule.
    """
    if hasattr(schema, "of_method"):
        method = str(composed.get("method", "sce"))
        base: Any = schema
        schema = base.of_method(method)
        kept: Any = OmegaConf.to_container(composed)
        composed = OmegaConf.create({key: kept[key] for key in kept if key not in METHODS or key == section_name(method)})
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
    check_ranges(result)
    return result


def _find_configs() -> Path:
    """Return the folder of the recipes: of the installed package, or of a checkout that is not installed."""
    if importlib.util.find_spec("sce_video.configs") is None:
        folder = Path(__file__).parents[1] / "configs"
        spec = importlib.util.spec_from_file_location(
            "sce_video.configs", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    return Path(str(resources.files("sce_video.configs")))


CONFIGS = _find_configs()


def check_overrides(arguments: Sequence[str], schema: type, recipes: Path) -> None:
    """Refuse unknown options, wrong types and unknown recipes on the command line before Hydra sees them."""
    schema = with_method(schema, arguments)
    own_folder = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    parsed = parse_overrides(arguments)
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


def compose_values(program: str, schema: type, arguments: Sequence[str]) -> DictConfig:
    """Return the options that Hydra composes from a command line, unchecked; InputError where it refuses."""
    folders, overrides, words = [], [], iter(arguments)
    for word in words:
        if word in ("--config-dir", "-cd"):
            folders.append(next(words, ""))
        elif word.startswith("--config-dir="):
            folders.append(word.partition("=")[2])
        elif word in FLAGS_WITH_VALUE:
            next(words, "")
        elif not word.startswith("-"):
            overrides.append(word)
    if folders:
        overrides.append(f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]")
    _store(program, with_method(schema, arguments))
    with initialize_config_module(f"sce_video.configs.{program}", **_VERSION):
        try:
            return compose("base", overrides)
        except HydraException as error:
            raise InputError(f"{program}: {str(error).splitlines()[0]}") from error


def composed_values(program: str, schema: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Return all options of a command line by dotted name, unchecked; `???` stands for a missing one."""
    return flatten(OmegaConf.to_container(compose_values(program, schema, arguments), enum_to_str=True))


def given_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line by dotted name, as Hydra parses them; of a sweep the largest value."""
    return {one.key_or_group: _largest(one) if one.is_sweep_override() else one.value() for one in parse_overrides(arguments)}


def _largest(sweep: Override) -> Any:
    values: list[Any] = list(sweep.sweep_iterator()) if sweep.is_discrete_sweep() else []
    numbers = all(isinstance(value, (int, float)) for value in values)
    return max(values) if values and numbers else values[0] if values else None


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Return the options of a command line as Hydra parses them. Raises InputError for one that it cannot read."""
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    try:
        return OverridesParser.create().parse_overrides(words)
    except OverrideParseException as error:
        raise InputError(f"cannot read {error.override!r}: write key=value, with quotes around odd characters") from error


def compose_options(program: str, schema: type[S], arguments: Sequence[str]) -> S:
    """Return the options that tools/<program>.py would run with; InputError where it would refuse them."""
    words = read_words(arguments, schema)
    check_overrides(words, schema, CONFIGS / program / "recipe")
    return typed(compose_values(program, schema, words), schema)


def run_program(
    program: str, schema: type[S], action: Callable[[S], object], complete: Callable[[list[str]], list[str]] | None = None
) -> None:
    """Compose `configs/<program>/base.yaml` with the command line and call `action` with the checked options.

    complete: adds options to those of the command line, before they are composed.
    """
    with errors_as_exit_codes():
        check_launcher(os.environ)
        words = read_words(sys.argv[1:], schema)
        check_overrides(words, schema, CONFIGS / program / "recipe")
        words = complete(words) if complete else words
        own = with_method(schema, words)
        _store(program, own)
        sys.argv[1:] = [*(f"~{name}" for name in _other_sections(own)), *words]

    @hydra.main(config_path=f"pkg://sce_video.configs.{program}", config_name="base", **_VERSION)
    def main(composed: DictConfig) -> None:
        with errors_as_exit_codes():  # inside, for Hydra turns every exception into exit code 1
            action(typed(composed, schema))

    main()


def check_launcher(environment: Mapping[str, str]) -> None:
    """Raise InputError for a launcher's variables that are incomplete or no numbers."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = environment.get(name, "1")
        if not value.isdecimal() or (name.endswith("_SIZE") and not int(value)):
            raise InputError(f"the environment has {name}={value!r}, which is no number: unset it, or start with torchrun")
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if "RANK" in environment and missing:
        raise InputError(f"the environment has RANK but not {', '.join(missing)}: unset it, or start with torchrun")


def errors_as_exit_codes() -> ExitStack:
    """Return a context that ends the process as its error says: one line on stderr and 70 or 75, or a traceback and 1."""
    ends = ExitStack()
    ends.push(_end_process)
    return ends


def _end_process(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """End a program that failed: see `errors`.

    One of several ranks leaves without clean-up, which waits for what may be gone: other ranks, or torchrun's store.
    """
    if error is None or isinstance(error, SystemExit):
        return
    if isinstance(error, Preempted):
        if distributed.rank() == 0:
            block = " (torchrun's report below is of this stop)" if distributed.launched() else ""
            log.info(f"stopped: {error}; the same command continues{block}")
    elif isinstance(error, torch.OutOfMemoryError):
        # "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of which 1.0 GiB is free. ..."
        facts = ". ".join(str(error).split(". ")[:3])
        log.error(
            f"{facts}: add optim.accumulate=2 (the same batch in two halves), system.recompute=true, or a smaller optim.batch; "
            "tools/plan.py says what fits"
        )
    elif isinstance(error, (InputError, Stopped)):
        if distributed.active() or os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine before ranks have met
            log.error(str(error))
            for line in getattr(error, "more", ()):
                log.info(f"  {line}")
    elif distributed.active():
        traceback.print_exception(kind, error, trace)
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if distributed.active():
        os._exit(exit_code(error))
    sys.exit(exit_code(error))
