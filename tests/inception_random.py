"""Seeded random weights of Inception in the official format, with healthy activations."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.metrics import _inception_forms as forms
from aigc_jax.metrics import inception, resize
from aigc_jax.metrics.inception_weights import SHAPES


def state_dict(seed: int = 0) -> dict[str, np.ndarray]:
    """The 472 float32 arrays of the official file, random; made once in a process.

    Kernels are He-normal; batch norms' statistics are those of one pass over noise with the
    spectrum of photographs, so that no layer is dead and none explodes; the classes' rows are
    orthogonal to the mean feature.
    """
    return dict(_state_dict(seed))


@functools.cache
def _state_dict(seed):
    rng = np.random.RandomState(seed)
    arrays = {name: _draw(rng, name, shape) for name, shape in SHAPES.items()}
    statistics, feature = _statistics(arrays, photographs(rng, count=12))
    arrays |= {name: np.array(values) for name, values in statistics.items()}
    rows, mean = arrays["fc.weight"], np.asarray(feature / jnp.linalg.norm(feature))
    arrays["fc.weight"] = (0.15 * (rows - np.outer(rows @ mean, mean))).astype(np.float32)
    return arrays


def weights(seed: int = 0) -> types.SimpleNamespace:
    """What `inception_weights.load` would give for these arrays."""
    return types.SimpleNamespace(
        arrays=state_dict(seed), path=f"random/seed{seed}.pth", sha256="0" * 64, official=False
    )


def allow_torchvision():
    """Makes `import torchvision` work where its wheel is for CUDA and PyTorch's is not.

    Such a wheel cannot load its operators, and then fails to register shapes for two of them."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _LIBRARIES.append(library)
        import torchvision  # noqa: F401


_LIBRARIES = []  # operators vanish with the object that defined them


def _draw(rng, name, shape):
    if name.endswith("conv.weight"):
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        values = rng.uniform(0.7, 1.3, shape)
    elif name.endswith("bn.bias"):
        values = 0.2 * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape)
    return values.astype(np.float32)


def photographs(rng, count):
    """(count, 299, 299, 3) in [-1, 1]: amplitudes of one over the frequency, most images soft."""
    sides = [32] * (count // 2) + [128] * (count // 4) + [299] * (count // 4)
    noise = [128 + 127 * _noise(rng, 1, side) for side in sides]
    return np.concatenate([(resize.tf1(image) - 128) / 128 for image in noise])


def _noise(rng, count, side):
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    white = rng.standard_normal((count, 3, side, side))
    white = 0.4 * white + 0.9 * white.mean(1, keepdims=True)  # mostly grey, as photographs are
    spectrum = np.fft.rfft2(white) / np.maximum(frequency, 1 / side)
    images = np.fft.irfft2(spectrum, (side, side))
    images = 0.5 * images / images.std((1, 2, 3), keepdims=True)
    return np.clip(images, -1, 1).transpose(0, 2, 3, 1).astype(np.float32)


@jax.jit
def _statistics(arrays, images):
    """What the batch norms see of images, normalising by it, and the mean feature."""
    statistics = {}

    def unit(name, x, stride=1, padding="SAME", pooled=False):
        x = forms.mean_3x3(x) if pooled else x
        kernel, layout = arrays[f"{name}.conv.weight"], ("NHWC", "OIHW", "NHWC")
        y = lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        statistics[f"{name}.bn.running_mean"] = mean
        statistics[f"{name}.bn.running_var"] = variance
        parts = arrays[f"{name}.bn.weight"], arrays[f"{name}.bn.bias"], mean, variance
        gamma, beta, mean, variance = (part.reshape(1, 1, 1, -1) for part in parts)
        return jax.nn.relu((y - mean) / jnp.sqrt(variance + inception.EPSILON) * gamma + beta)

    x, _ = inception.large_layers(unit, images)
    return statistics, inception.small_layers(unit, x)["2048"].mean(0)
