"""Load what an option names from outside the package: `package.module:name`, or `path/to/file.py:name`.

Backbones, methods, data sets and view pipelines of one's own are given so. The code is imported and run: only names that the
user typed, or trusted, may come here.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from ..errors import InputError


def is_named(text: str) -> bool:
    """Whether a text has the form `module:name` or `file.py:name`, in contrast to a built-in name."""
    return ":" in text


def load_named(text: str, option: str) -> Any:
    """Return the object that `text` names: `package.module:name`, or `path/to/file.py:name` from the working directory.

    option: the name of the option that gave it, for messages. A file is imported once; the folder of a file is not put on the
    path, so modules beside it must be importable by themselves.

    Raises InputError for another form, a missing file, module or name, and a module that cannot be imported.
    """
    source, colon, name = text.rpartition(":")
    if not (colon and source and name.isidentifier()):
        raise InputError(f"{option}={text}: write package.module:name, or path/to/file.py:name")
    module = _import_file(source, text, option) if source.endswith(".py") else _import_module(source, text, option)
    if not hasattr(module, name):
        own = [key for key in vars(module) if not key.startswith("_")]
        close = difflib.get_close_matches(name, own, n=1)
        raise InputError(f"{option}={text}: {source} has no {name!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    return getattr(module, name)


def _import_module(source: str, text: str, option: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise InputError(f"{option}={text}: {source!r} is no name of a module; a file ends in .py")
    try:
        return importlib.import_module(source)
    except (ImportError, SyntaxError) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}.")
        why = "is its folder on PYTHONPATH? A file is named by its path" if missing else f"an error inside {source}"
        raise InputError(f"{option}={text} cannot be imported ({type(error).__name__}: {error}): {why}") from error


def _import_file(source: str, text: str, option: str) -> types.ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{option}={text}: there is no file {path}")
    name = str(path)  # no module found on the path has such a name
    if name in sys.modules:
        return sys.modules[name]
    spec: Any = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses and pickle look a class up by its module
    try:
        spec.loader.exec_module(sys.modules[name])
    except (ImportError, SyntaxError, OSError, UnicodeError) as error:
        del sys.modules[name]
        raise InputError(f"{option}={text}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[name]
