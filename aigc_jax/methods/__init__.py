"""How networks are trained, one algorithm a file: plain functions over a pytree state.

A method is a module with `State`, `from_config`, `init_state`, `train_step`, `sample`, and
optionally `preview`, `eval_step` and `diagnose`; the README's Architecture section gives the
signatures.
"""

import sys
from types import ModuleType

from aigc_jax import plugins


def load(name: str) -> ModuleType:
    """The method of that name, or your own by a dotted module name. UserError: there is none."""
    return plugins.find(sys.modules[__name__], "method", name)
