"""The mission's own GAN in Flax as one would first write it: `nn.ConvTranspose`, autodiff, jit.

The same networks as `twin_torch.py`; D runs on real and on fake apart, and G in each update.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training.train_state import TrainState

KERNEL = nn.initializers.normal(0.02)


def scale_init(key, shape, dtype=jnp.float32):
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def widths(image_size: int, width: int = 64) -> list[int]:
    """D's channels: `width` at half the size, doubled down to 4x4."""
    return [width * 2**i for i in range(image_size.bit_length() - 3)]


def batch_norm(module: nn.Module) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=False,
        momentum=0.9,
        scale_init=scale_init,
        dtype=module.dtype,
        axis_name=module.axis_name,
    )


class Generator(nn.Module):
    """z (B, latent) -> images (B, S, S, channels) in [-1, 1]."""

    image_size: int = 32
    channels: int = 3
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z):
        x, stride, padding = z[:, None, None], 1, "VALID"
        conv = {"use_bias": False, "kernel_init": KERNEL, "dtype": self.dtype}
        for width in reversed(widths(self.image_size)):
            x = nn.ConvTranspose(width, (4, 4), (stride, stride), padding, **conv)(x)
            x = nn.relu(batch_norm(self)(x))
            stride, padding = 2, "SAME"
        return jnp.tanh(nn.ConvTranspose(self.channels, (4, 4), (2, 2), "SAME", **conv)(x))


class Discriminator(nn.Module):
    """Images (B, S, S, channels) -> logits (B,)."""

    image_size: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        conv = {"use_bias": False, "kernel_init": KERNEL, "dtype": self.dtype}
        for i, width in enumerate(widths(self.image_size)):
            x = nn.Conv(width, (4, 4), (2, 2), 1, **conv)(x)
            x = nn.leaky_relu(batch_norm(self)(x) if i else x, 0.2)
        return nn.Conv(1, (4, 4), (1, 1), "VALID", **conv)(x).reshape(-1)


class BatchNormState(TrainState):
    """A network's TrainState with its running statistics."""

    batch_stats: Any


class State(struct.PyTreeNode):
    """Both networks."""

    g: BatchNormState
    d: BatchNormState


def init_state(
    rng, image_size=32, channels=3, latent_dim=100, dtype=jnp.float32, axis_name=None
) -> State:
    """Fresh networks and Adam(2e-4, b1=0.5) for each."""
    g = Generator(image_size, channels, dtype, axis_name)
    d = Discriminator(image_size, dtype, axis_name)
    g_rng, d_rng = jax.random.split(rng)
    images = jnp.zeros((1, image_size, image_size, channels))
    return State(g=_create(g, g_rng, jnp.zeros((1, latent_dim))), d=_create(d, d_rng, images))


def _create(module: nn.Module, rng, example) -> BatchNormState:
    # A module without the axis: it is not bound while initialising.
    variables = module.clone(axis_name=None).init(rng, example)
    return BatchNormState.create(apply_fn=module.apply, tx=optax.adam(2e-4, b1=0.5), **variables)


def train_step(state: State, batch, rng, latent_dim=100, axis_name=None):
    """One D and one G update, non-saturating; gradients are averaged over `axis_name`."""
    images = batch["image"]
    rng = jax.random.fold_in(rng, state.g.step)
    if axis_name:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    z = jax.random.normal(rng, (len(images), latent_dim))

    def d_loss(params):
        fake, _ = apply(state.g, state.g.params, z)
        real_logits, stats = apply(state.d, params, images)
        fake_logits, stats = apply(state.d.replace(batch_stats=stats), params, fake)
        return bce(real_logits, 1.0) + bce(fake_logits, 0.0), stats

    d, d_value = update(state.d, d_loss, axis_name)

    def g_loss(params):
        fake, stats = apply(state.g, params, z)
        logits, _ = apply(d, d.params, fake)
        return bce(logits, 1.0), stats

    g, g_value = update(state.g, g_loss, axis_name)
    return State(g=g, d=d), {"d_loss": d_value, "g_loss": g_value}


def apply(network: BatchNormState, params, x):
    """The network's output on `x`, and its new running statistics."""
    variables = {"params": params, "batch_stats": network.batch_stats}
    y, updates = network.apply_fn(variables, x, mutable=["batch_stats"])
    return y, updates["batch_stats"]


def bce(logits, target: float):
    """The non-saturating GAN loss of one half: mean binary cross-entropy to one `target`."""
    logits = logits.astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()


def update(network: BatchNormState, loss, axis_name):
    """The network one Adam step down `loss(params) -> (value, statistics)`, and the value."""
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(network.params)
    if axis_name:
        grads, value = jax.lax.pmean((grads, value), axis_name)
    return network.apply_gradients(grads=grads, batch_stats=stats), value
