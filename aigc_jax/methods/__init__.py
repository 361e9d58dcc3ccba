"""How networks are trained, one algorithm a file: plain functions over a pytree state.

A method is a module with `State`, `from_config`, `init_state`, `train_step`, `sample`, and
optionally `preview`, `eval_step` and `diagnose`; the README's Architecture section gives the
signatures. One with `latents` and `decode` fills holes too (`aigc_jax.latent_search`), the better
for `realism(spec, state, images, batch) -> (B,)`: how real images look, by a discriminator.
"""

import sys
from types import ModuleType

from aigc_jax import plugins


def command(method: ModuleType) -> str | None:
    """The command for a method that makes images of images: "translate" or "restore"; else None."""
    return next((name for name in ("translate", "restore") if hasattr(method, name)), None)


def load(name: str) -> ModuleType:
    """The method of that name, or your own by a dotted module name. UserError: there is none."""
    return plugins.find(sys.modules[__name__], "method", name)
