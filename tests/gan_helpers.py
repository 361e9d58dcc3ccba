"""Networks of a GAN that are quick to compile, and what its step draws, one key at a time."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from aigc_jax.layers.condition import concat_label, for_each
from aigc_jax.layers.conv import Dense
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.layers.spectral import spectral
from aigc_jax.methods import gan as method

RNG = jax.random.key(0)
SIZE, LATENT, RATE = 8, 6, 0.1
SGD = optax.sgd(RATE)


class Draws(nn.Module):
    """A generator: two layers, the first under batch norm or not."""

    norm: bool = False
    spectral: bool = False
    num_classes: int = 0
    axis_name: Any = None
    latent_dim: int = LATENT
    image_size: int = SIZE
    channels: int = 1

    @nn.compact
    def __call__(self, z, label=None, *, train):
        x = concat_label(z, label, self.num_classes)
        x = Dense(10, reparam=spectral(train) if self.spectral else None, name="first")(x)
        if self.norm:
            x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train)
        x = Dense(SIZE * SIZE, name="last")(jnp.tanh(x))
        return jnp.tanh(x).reshape(-1, SIZE, SIZE, 1)


class Judges(nn.Module):
    """A discriminator of two layers, which tells the class too."""

    norm: bool = False
    spectral: bool = False
    num_classes: int = 0
    axis_name: Any = None

    @nn.compact
    def __call__(self, x, label=None, *, train, groups=1):
        images = len(x)
        if label is not None:
            x, label = for_each(x, label, groups)
        groups *= len(x) // images
        x = concat_label(x.reshape(len(x), -1), label, self.num_classes)
        x = Dense(9, reparam=spectral(train) if self.spectral else None, name="first")(x)
        if self.norm:
            x = BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train, groups=groups)
        x = jnp.tanh(x)
        if self.num_classes:
            told = Dense(self.num_classes, name="tells")(x[:: len(x) // images])
            self.sow("auxiliary", "logits", told)
        return Dense(1, name="last")(x)[:, 0]


class Styled(nn.Module):
    """A generator with a mapping to two styles, which its synthesis multiplies."""

    axis_name: Any = None
    truncation: float | None = None
    latent_dim: int = LATENT
    image_size: int = SIZE
    channels: int = 1
    needs_keys: ClassVar[bool] = True

    def setup(self):
        self.to_w, self.first, self.last = Dense(5), Dense(7), Dense(SIZE * SIZE)

    def __call__(self, z, label=None, *, train, keys=None):
        return self.synthesis(self.mapping(z, label, train=train), keys, train=train)

    def mapping(self, z, label=None, *, train):
        w = jnp.tanh(self.to_w(z)) * (1.0 if self.truncation is None else self.truncation)
        return jnp.stack([w, w], 1)

    def synthesis(self, ws, keys=None, *, train):
        x = jnp.tanh(self.first(ws[:, 0]))
        x = self.last(jnp.concatenate([x, ws[:, 1]], -1)).reshape(-1, SIZE, SIZE, 1)
        if keys is None:
            return x
        return x + 0.1 * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def make(g=None, d=None, **fields):
    """A GAN of those networks, its fields of theirs where they are given as dicts; SGD."""
    common = {k: fields[k] for k in ("num_classes", "axis_name") if k in fields}
    g = g if isinstance(g, nn.Module) else Draws(**common, **g or {})
    defaults = dict(g_tx=SGD, d_tx=SGD)
    return method.GAN(g, Judges(**common, **d or {}), **defaults | fields)


def make_batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, SIZE, SIZE, 1)).astype(np.float32),
        "label": rng.integers(0, 3, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def started(gan, batch):
    """A first state whose every parameter is away from its first value; nothing is compiled."""
    shapes = jax.eval_shape(functools.partial(method.init_state, gan), RNG, batch)
    rng = np.random.default_rng(1)

    def drawn(path, x):
        name = path[-1].key
        if name in ("mean", "var"):
            return np.full(x.shape, name == "var", x.dtype)
        scale = 0.2 if x.ndim == 1 and name != "scale" else 1.5 / len(x) ** 0.5
        return (scale * rng.normal(size=x.shape)).astype(x.dtype)

    g, d = (jax.tree_util.tree_map_with_path(drawn, x) for x in (shapes.g, shapes.d))
    return jax.tree.map(
        jnp.array,
        shapes.replace(
            step=np.int32(0),
            g=g,
            d=d,
            g_opt=gan.g_tx.init(g["params"]),
            d_opt=gan.d_tx.init(d["params"]),
            ema=None if shapes.ema is None else g,
            extras=method._begin(gan),
        ),
    )


@functools.cache
def compiled(gan):
    return jax.jit(functools.partial(method.train_step, gan))


def drawn_keys(n, step=0, update=0):
    """(n,) keys of the examples of an update of D."""
    rng = jax.random.fold_in(jax.random.fold_in(RNG, step), update)
    return jnp.stack([jax.random.fold_in(rng, i) for i in range(n)])


def folded(keys, number):
    return jnp.stack([jax.random.fold_in(key, number) for key in keys])


def normals(keys, *shape):
    return jnp.stack([jax.random.normal(key, shape) for key in keys])


def close(a, b, atol=1e-6, rtol=1e-4):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol), a, b)


def same(a, b):
    """Whether no leaf differs."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def moved(a, b):
    """Whether every leaf differs."""
    return not any(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def descended(params, grads):
    """Parameters after a step of SGD."""
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads)
