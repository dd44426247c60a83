"""Plug-ins: objectives, model families and decoding rules, found by their file's name.

In:  a kind ("objectives") and a name, or a path to a Python file.  Out: the file as a module.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
import types
from pathlib import Path

from unmask.values import UserError, nearest


def named(kind: str, name: str) -> types.ModuleType:
    """The plug-in file `name` of `kind`: named("objectives", "masked") → unmask/objectives/masked.py.

    `name` may also be a path to a Python file outside the package: `my_lab/objective.py`.
    """
    if name.endswith(".py"):
        return load_file(name)
    package = importlib.import_module(f"unmask.{kind}")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    if name in names:
        return importlib.import_module(f"unmask.{kind}.{name}")
    raise UserError(
        f"no {kind.rstrip('s')} called {name!r}; there are {', '.join(names)}, or give path/to/file.py."
        f"{nearest(name, names)}"
    )


def load_file(path: str | Path) -> types.ModuleType:
    """A Python file from outside the package as a module, loaded once for each path."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}.")
    name = "unmask_plugin_" + re.sub(r"\W", "_", str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
