"""What the tests of the translating methods share: tiny domains, steps on every layout, truths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.layers.conv import Conv

RNG = jax.random.key(0)
SIZE = 12
LR = 0.05


class Toy(nn.Module):
    """A generator that compiles at once, and whose rounding nothing amplifies."""

    channels: int = 3

    def setup(self):
        self.first, self.last = Conv(4), Conv(self.channels)

    def __call__(self, x, *, train=False, keys=None):
        return self.with_features(x)[0]

    def with_features(self, x):
        maps = self.encode(x)
        return jnp.tanh(x + self.last(nn.leaky_relu(maps[1], 0.2))), maps

    def encode(self, x):
        return [x, self.first(x)]


def domains(n=4, channels=3, size=SIZE, seed=0):
    """Smooth-ish images of two domains: a dark, b bright."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-1, 1, (2, n, size, size, channels)).astype(np.float32)
    return {"a": 0.7 * a - 0.2, "b": 0.6 * b + 0.3}


def held_out(n=4, valid=3, **shape):
    """A batch to evaluate, the last of whose examples are fillers."""
    return domains(n, **shape) | {"valid": (np.arange(n) < valid).astype(np.float32)}


def louder(tree, factor=4.0):
    """Larger weights than a fresh network's, and no zero biases: every term then weighs."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(7)
    return structure.unflatten(
        [factor * x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    )


def close(actual, expected, atol=1e-6, rtol=1e-5):
    check = functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol)
    jax.tree.map(check, actual, expected)


def same(x, y):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, x, y)))


def all_moved(x, y):
    """Whether every leaf changed."""
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), x, y)
    return all(jax.tree.leaves(moved))


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def descend(params, grads, lr=LR):
    """A step of SGD."""
    return jax.tree.map(lambda p, g: p - lr * g, params, grads)


def step(method, spec, state, batch, rng=RNG):
    return _compiled(method.train_step, spec)(state, batch, rng)


@functools.cache
def _compiled(function, spec):
    return jax.jit(functools.partial(function, spec))


def trained(method, make, mode, devices, batches, state):
    """State and metrics after the batches; `make(axis_name)` is the static half."""
    layout = parallel.layout(mode, jax.devices()[:devices])
    # Steps give away what they are given, so that nothing may be in it twice.
    state = layout.place_state(jax.tree.map(jnp.array, state))
    train_step = functools.partial(method.train_step, make(layout.axis_name))
    train_step = layout.compile(train_step, state)
    for batch in batches:
        state, metrics = train_step(state, layout.place_batch(batch), RNG)
    return jax.device_get((state, metrics))


def psnr64(x, y):
    """Of images in [-1, 1], (B,)."""
    error = ((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(4 / error)


def l164(x, y):
    """As a share of the range, (B,)."""
    return np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).mean((1, 2, 3)) / 2


def masked(values, valid):
    """What an eval_step tells of values (B,)."""
    return float((values * valid).sum()), float(valid.sum())


def check_paired(found, truth, valid, constant, copied, made):
    """What an eval_step tells of translations whose truth is known, and the baselines first."""
    names = ("psnr", "ssim", "l1", "within_5")
    prefixes = {"constant_": constant, "copied_": copied, "": made}
    assert list(found)[:12] == [f"{prefix}{name}" for prefix in prefixes for name in names]
    for prefix, images in prefixes.items():
        for name, metric in (("psnr", psnr64), ("l1", l164)):
            expected = masked(metric(images, truth), valid)
            np.testing.assert_allclose(found[prefix + name], expected, rtol=1e-4)
    assert all(np.isfinite(total) and count == valid.sum() for total, count in found.values())


def small_config(method, /, **fields):
    """The method's default config with tiny networks; `fields` by their path, `a__b` for a.b."""
    config = configs.default()
    config.update(method.defaults())
    config.channels, config.num_classes, config.image_size = 3, 0, SIZE
    config = configs.finish(config)
    with config.unlocked():
        for path, value in fields.items():
            *sections, last = path.split("__")
            section = functools.reduce(lambda c, name: c[name], sections, config)
            section[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config
