"""Weights of transformers under their names in PyTorch, as the parameters of our networks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.types import PyTree


class Weights:
    """The arrays of a file; what is missing is a UserError that names it.

    Attributes:
      arrays: by their names in the file; those of other networks in it are left alone.
      network: its name, for messages.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], network: str) -> None:
        self.arrays, self.network = arrays, network

    def __getitem__(self, key: str) -> np.ndarray:
        """float32."""
        if key not in self.arrays:
            raise UserError(f"These are no weights of {self.network}: {key} is missing.")
        return np.asarray(self.arrays[key], np.float32)

    def table(self, key: str) -> np.ndarray:
        """Of an embedding, (N, E)."""
        if (table := self[key]).ndim != 2 or not table.size:
            raise UserError(f"These are no weights of {self.network}: {key} is {table.shape}.")
        return table

    def depth(self, layers: str) -> int:
        """How many numbers follow `layers`, e.g. "encoder.layer."."""
        found = {
            key.removeprefix(layers).partition(".")[0]
            for key in self.arrays
            if key.startswith(layers)
        }
        if not found:
            raise UserError(f"These are no weights of {self.network}: it has no {layers}0.")
        return len(found)

    def dense(self, *names: str) -> PyTree:
        """Linear layers on one input, side by side as one."""
        kernel = np.concatenate([self[f"{name}.weight"] for name in names])
        return {"kernel": kernel.T, "bias": np.concatenate([self[f"{n}.bias"] for n in names])}

    def norm(self, name: str) -> PyTree:
        """Of a layer norm."""
        return {"scale": self[f"{name}.weight"], "bias": self[f"{name}.bias"]}

    def variables(self, module: nn.Module, params: PyTree) -> PyTree:
        """The module's variables, of jax arrays; UserError where a shape is another."""
        tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        like = jax.eval_shape(module.init, jax.random.key(0), tokens, mask)["params"]
        wanted, found = (
            {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
             for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (like, params)
        )  # fmt: skip
        wrong = [f"{k} is {found[k]}, not {s}" for k, s in wanted.items() if found[k] != s]
        if wrong:
            raise UserError(f"These are no weights of {self.network}: {'; '.join(wrong[:3])}.")
        return {"params": jax.tree.map(jnp.asarray, params)}
