"""What a decoder's output says of an image: log-probabilities, means and samples.

Each likelihood reads a map of parameters (B, H, W, outputs), any float type, and computes in
float32. All but Bernoulli measure 8-bit images, so their figures compare; divide nats by
D log 2, with D = H W C, for bits/dim. Leading axes beside B are allowed in `log_prob` and `mean`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.types import Array

_PIXELS = (-3, -2, -1)
# Of logistics. The floor is that of Salimans et al. 2017; above the ceiling all mass is in the
# two edge bins, and rounding would spoil the mean.
_LOG_SCALES = (-7.0, 7.0)


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Binary pixels; the parameters are logits. Grey values are the chance of white.

    `observe` draws new binary images each time, as Burda et al. 2016 (section 5.1) do in training
    and in testing alike.
    """

    channels: int
    unit: ClassVar[str] = "nats"

    @property
    def outputs(self) -> int:
        """Channels that the decoder makes."""
        return self.channels

    def observe(self, keys: Array, images: Array) -> Array:
        """Images (B, H, W, C) in [-1, 1] -> {-1, 1}, white with probability (image + 1) / 2."""
        return _flip(keys, (images.astype(jnp.float32) + 1) / 2)

    def log_prob(self, x: Array, params: Array) -> Array:
        """x (B, H, W, C) in {-1, 1} -> (B,) nats."""
        return log_sigmoid(x * params.astype(jnp.float32)).sum(_PIXELS)

    def mean(self, params: Array) -> Array:
        """(B, H, W, C) in [-1, 1]."""
        return jnp.tanh(params.astype(jnp.float32) / 2)

    def sample(self, keys: Array, params: Array) -> Array:
        """Keys (B,), one an example -> (B, H, W, C) in {-1, 1}."""
        return _flip(keys, jax.nn.sigmoid(params.astype(jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A normal for each subpixel; the parameters are the means, then the log standard deviations.

    The data are dequantised (Theis et al. 2016, section 3.1): `log_prob` is that of the bin that
    holds x, if the density were the same in all of it; averaged over `observe` it is a lower bound
    of the 8-bit image's. The deviation has that of the dequantisation noise as its floor: on
    average none below can be likelier.
    """

    channels: int
    unit: ClassVar[str] = "bits/dim"
    log_scale_floor: ClassVar[float] = math.log(2 / 256 / math.sqrt(12))

    @property
    def outputs(self) -> int:
        """Channels that the decoder makes."""
        return 2 * self.channels

    def observe(self, keys: Array, images: Array) -> Array:
        """8-bit images (B, H, W, C) in [-1, 1] -> anywhere in their bins of width 2/256."""
        return (_levels(images) + _uniform(keys, images.shape[1:])) / 128 - 1

    def log_prob(self, x: Array, params: Array) -> Array:
        """x (B, H, W, C) in [-1, 1) -> (B,) nats."""
        mean, log_scale = self._split(params)
        z = (x - mean) * jnp.exp(-log_scale)
        density = -(z**2) / 2 - log_scale - math.log(2 * math.pi) / 2
        return (density + math.log(2 / 256)).sum(_PIXELS)

    def mean(self, params: Array) -> Array:
        """(B, H, W, C) in [-1, 1]."""
        # Bins centre on (v + 1/2) / 128 - 1, pixels are v / 127.5 - 1.
        return jnp.clip(self._split(params)[0] * (256 / 255), -1, 1)

    def sample(self, keys: Array, params: Array) -> Array:
        """Keys (B,), one an example -> 8-bit images (B, H, W, C) in [-1, 1]."""
        mean, log_scale = self._split(params)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        x = mean + jnp.exp(log_scale) * noise
        return jnp.clip(jnp.floor((x + 1) * 128), 0, 255) / 127.5 - 1

    def _split(self, params: Array) -> tuple[Array, Array]:
        mean, log_scale = jnp.split(params.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.maximum(log_scale, self.log_scale_floor)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """A logistic for each subpixel, integrated over the 256 bins (Kingma et al. 2016, section 5).

    The parameters are the means, then the log-scales; the outermost bins are open.
    """

    channels: int
    unit: ClassVar[str] = "bits/dim"

    @property
    def outputs(self) -> int:
        """Channels that the decoder makes."""
        return 2 * self.channels

    def observe(self, keys: Array, images: Array) -> Array:
        """The images as they are: 8-bit ones, in [-1, 1]."""
        return images

    def log_prob(self, x: Array, params: Array) -> Array:
        """x (B, H, W, C), v / 127.5 - 1 -> (B,) nats."""
        return _log_bin(x, *self._split(params)).sum(_PIXELS)

    def mean(self, params: Array) -> Array:
        """(B, H, W, C) in [-1, 1], before rounding to 8 bits."""
        return _bounded_mean(*self._split(params))

    def sample(self, keys: Array, params: Array) -> Array:
        """Keys (B,), one an example -> 8-bit images (B, H, W, C) in [-1, 1]."""
        mean, log_scale = self._split(params)
        return _quantise(mean + jnp.exp(log_scale) * _logistic(keys, mean.shape[1:]))

    def _split(self, params: Array) -> tuple[Array, Array]:
        mean, log_scale = jnp.split(params.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_scale, *_LOG_SCALES)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """A mixture of discretized logistics for each pixel (Salimans et al. 2017, section 2).

    One component explains all channels of a pixel; within it the mean of green is shifted by
    red, that of blue by red and green (section 2.2). Per pixel the parameters are K logits, then
    means and log-scales (C, K) each and, for colour, the shifts' coefficients (3, K) before tanh.

    Raises:
      UserError: `channels` is neither 1 nor 3.
    """

    channels: int
    components: int = 10
    unit: ClassVar[str] = "bits/dim"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError(
                f"The likelihood 'logistic_mixture' takes images of 1 or 3 channels, "
                f"not {self.channels}: use 'discretized_logistic'."
            )

    @property
    def outputs(self) -> int:
        """Channels that the decoder makes."""
        return self.components * (10 if self.channels == 3 else 3)

    def observe(self, keys: Array, images: Array) -> Array:
        """The images as they are: 8-bit ones, in [-1, 1]."""
        return images

    def log_prob(self, x: Array, params: Array) -> Array:
        """x (B, H, W, C), v / 127.5 - 1 -> (B,) nats."""
        logits, mean, log_scale, coefficients = self._split(params)
        x = x[..., None]
        log_bin = _log_bin(x, mean + _shift(coefficients, x), log_scale).sum(-2)
        pixel = jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_bin, axis=-1)
        return pixel.sum((-2, -1))

    def mean(self, params: Array) -> Array:
        """(B, H, W, C) in [-1, 1], before rounding; the shifts are by the other channels' means.

        Exact where no channel that shifts another or is shifted is cut off at the edges.
        """
        logits, mean, log_scale, coefficients = self._split(params)
        x = jnp.zeros_like(mean)
        for _ in range(self.channels):  # red is settled first, blue last
            x = _bounded_mean(mean + _shift(coefficients, x), log_scale)
        return (x * jax.nn.softmax(logits)[..., None, :]).sum(-1)

    def sample(self, keys: Array, params: Array) -> Array:
        """Keys (B,), one an example -> 8-bit images (B, H, W, C) in [-1, 1]."""
        logits, *rest = self._split(params)
        component = jax.vmap(jax.random.categorical)(_fold(keys, 0), logits)
        chosen = jax.nn.one_hot(component, self.components)[..., None, :]
        mean, log_scale, coefficients = ((t * chosen).sum(-1, keepdims=True) for t in rest)
        noise = jnp.exp(log_scale) * _logistic(_fold(keys, 1), mean.shape[1:])
        x = jnp.zeros_like(mean)
        for _ in range(self.channels):
            x = _quantise(mean + _shift(coefficients, x) + noise)
        return x[..., 0]

    def _split(self, params: Array) -> tuple[Array, Array, Array, Array]:
        """Logits (..., K); means, log-scales and coefficients in (-1, 1), (..., C, K) each."""
        params = params.astype(jnp.float32)
        logits, rest = params[..., : self.components], params[..., self.components :]
        rest = rest.reshape(*rest.shape[:-1], -1, self.channels, self.components)
        mean, log_scale = rest[..., 0, :, :], rest[..., 1, :, :]
        coefficients = jnp.tanh(rest[..., 2:, :, :].sum(-3))  # none for grey: 0
        return logits, mean, jnp.clip(log_scale, *_LOG_SCALES), coefficients


Likelihood = Bernoulli | Gaussian | DiscretizedLogistic | LogisticMixture

_LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
    "logistic_mixture": LogisticMixture,
}


def get(name: str, channels: int) -> Likelihood:
    """The likelihood of that name for images of so many channels. UserError: an unknown one."""
    if name not in _LIKELIHOODS:
        raise UserError(f"Unknown likelihood {name!r}.{did_you_mean(name, _LIKELIHOODS)}")
    return _LIKELIHOODS[name](channels)


def _log_bin(x: Array, mean: Array, log_scale: Array) -> Array:
    """The log of a logistic's mass within 1/255 of x, a tail's at x = +-1.

    With edges a > b in units of the scale, sigmoid(a) - sigmoid(b) =
    sigmoid(a) sigmoid(-b) (1 - exp(b - a)): exact in the tails, and so is the gradient.
    """
    inverse = jnp.exp(-log_scale)
    below = log_sigmoid((x - mean + 1 / 255) * inverse)
    above = log_sigmoid((mean - x + 1 / 255) * inverse)
    width = jnp.log(-jnp.expm1(-2 / 255 * inverse))
    inner = above + below + width
    return jnp.where(x < -0.999, below, jnp.where(x > 0.999, above, inner))


def _bounded_mean(mean: Array, log_scale: Array) -> Array:
    """The mean of a logistic variable clipped to [-1, 1]: 1 - the integral of its cdf there."""
    scale = jnp.exp(log_scale)
    integral = scale * (softplus((1 - mean) / scale) - softplus((-1 - mean) / scale))
    return jnp.clip(1 - integral, -1, 1)


def _shift(coefficients: Array, x: Array) -> Array:
    """What the channels before add to each mean: (..., C, K) from x (..., C, K or 1)."""
    if x.shape[-2] == 1:
        return jnp.zeros_like(coefficients)
    red, green = x[..., 0, :], x[..., 1, :]
    c = [coefficients[..., i, :] for i in range(3)]
    return jnp.stack([jnp.zeros_like(c[0]), c[0] * red, c[1] * red + c[2] * green], axis=-2)


def _levels(images: Array) -> Array:
    return jnp.round((images.astype(jnp.float32) + 1) * 127.5)


def _quantise(x: Array) -> Array:
    return jnp.clip(_levels(x), 0, 255) / 127.5 - 1


def _flip(keys: Array, p: Array) -> Array:
    return jnp.where(_uniform(keys, p.shape[1:]) < p, 1.0, -1.0)


def _uniform(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def _logistic(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.logistic(key, shape))(keys)


def _fold(keys: Array, data: int) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
