"""Modules by name, from a config: the library's own, or a user's by a dotted name."""

import importlib
import pkgutil
from types import ModuleType

from aigc_jax.errors import UserError, did_you_mean


def find(package: ModuleType, kind: str, name: str) -> ModuleType:
    """The module `name` of `package`, or the module of a dotted `name`.

    Raises:
      UserError: there is none; `kind` is what it calls it.
    """
    target = name if "." in name else f"{package.__name__}.{name}"
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if target != missing and not target.startswith(f"{missing}."):
            raise  # it was found, and misses something else
        known = [module.name for module in pkgutil.iter_modules(package.__path__)]
        raise UserError(f"Unknown {kind} {name!r}.{did_you_mean(name, known)}") from None
