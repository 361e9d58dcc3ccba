"""The perceptual distance against numpy, against LPIPS, and on a classifier's stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.losses.perceptual import perceptual_distance, unit
from aigc_jax.metrics import lpips
from aigc_jax.models.classifier import Classifier, stages

RNG = jax.random.key(0)


def maps(seed, n=3):
    rng = np.random.default_rng(seed)
    sizes = [(8, 8, 4), (4, 5, 6), (1, 1, 7)]
    return [np.maximum(rng.normal(size=(n, *size)), 0).astype(np.float32) for size in sizes]


def images(size=16):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def plain(of_x, of_y):
    """Pixel by pixel, in float64."""
    total = 0.0
    for x, y in zip(of_x, of_y, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        pixels = []
        for i, j in np.ndindex(x.shape[1:3]):
            a, b = (
                v[:, i, j] / np.maximum(np.linalg.norm(v[:, i, j], axis=-1, keepdims=True), 1e-10)
                for v in (x, y)
            )
            pixels.append(((a - b) ** 2).sum(-1))
        total += np.mean(pixels, 0)
    return total / len(of_x)


def test_it_is_the_formula():
    of_x, of_y = maps(0), maps(1)
    distance = jax.jit(perceptual_distance)(of_x, of_y)
    assert distance.shape == (3,) and distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, plain(of_x, of_y), rtol=1e-5)
    np.testing.assert_allclose(perceptual_distance(of_x, of_x), 0, atol=1e-12)


def test_bounds():
    a, b = np.zeros((2, 1, 2, 2, 4), np.float32)
    a[..., 0], b[..., 3] = 2.0, 0.1
    np.testing.assert_allclose(perceptual_distance([a], [b]), 2, rtol=1e-6)
    np.testing.assert_allclose(perceptual_distance([a], [-a]), 4, rtol=1e-6)
    np.testing.assert_allclose(perceptual_distance([a], [7 * a]), 0, atol=1e-12)


def test_it_is_lpips_with_unit_weights():
    """LPIPS sums over its stages, this averages."""
    of_x, of_y = maps(0), maps(1)
    weights = [jnp.ones(x.shape[-1]) for x in of_x]
    expected = sum(map(lpips._distance, of_x, of_y, weights))
    np.testing.assert_allclose(3 * perceptual_distance(of_x, of_y), expected, rtol=1e-5)


def test_gradients_are_finite_where_all_is_zero():
    zeros, of_y = [np.zeros_like(x) for x in maps(0)], maps(1)

    gradient = jax.jit(jax.grad(lambda of_x: perceptual_distance(of_x, of_y).sum()))
    for start in (zeros, maps(0), of_y):
        assert all(np.isfinite(g).all() for g in gradient(start))
    assert any(np.abs(g).max() > 1e-3 for g in gradient(maps(0)))


def test_the_gradient_is_the_difference_quotient():
    of_x, of_y = [x + 0.5 for x in maps(0)], maps(1)
    direction = [np.sin(np.arange(x.size)).reshape(x.shape).astype(np.float32) for x in of_x]
    gradient = jax.jit(jax.grad(lambda of_x: perceptual_distance(of_x, of_y).sum()))(of_x)
    slope = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    ends = [
        plain([x + h * d for x, d in zip(of_x, direction, strict=True)], of_y).sum()
        for h in (1e-3, -1e-3)
    ]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-3, rtol=1e-2)


def test_unit_length():
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(unit(x), axis=-1), 1, rtol=1e-6)
    assert unit(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32
    assert not np.any(unit(np.zeros((2, 5), np.float32)))


# ---- the classifier that looks ----


CLASSIFIER = Classifier(num_classes=3, width=2)


@functools.cache
def classifier_variables():
    return jax.jit(functools.partial(CLASSIFIER.init, train=False))(RNG, images())


see = jax.jit(functools.partial(stages, CLASSIFIER))


def test_stages_of_the_classifier():
    x, variables = images(), classifier_variables()
    assert set(variables) == {"params", "batch_stats"}
    seen = see(variables, x)
    assert [s.shape for s in seen] == [(2, 16, 16, 2), (2, 8, 8, 4), (2, 4, 4, 4)]
    assert all((s >= 0).all() for s in seen)
    logits, features = CLASSIFIER.apply(variables, x, train=False)
    assert logits.shape == (2, 3)
    np.testing.assert_allclose(seen[-1].mean((1, 2)), features, rtol=1e-5)


def test_the_first_stage_is_a_convolution_and_a_rectifier():
    x, variables = images(), classifier_variables()
    params = jax.device_get(variables["params"])
    kernel, norm = params["Conv_0"]["kernel"], params["BatchNorm_0"]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
    )
    y = np.einsum("bhwcij,ijco->bhwo", windows, kernel) / np.sqrt(1 + 1e-5)
    expected = np.maximum(y * norm["scale"] + norm["bias"], 0)
    np.testing.assert_allclose(see(variables, x)[0], expected, 1e-4, 1e-5)


def test_stages_see_each_image_alone():
    x, variables = images(), classifier_variables()
    for one, both in zip(see(variables, x[:1]), see(variables, x), strict=True):
        np.testing.assert_allclose(one, both[:1], 1e-5, 1e-6)


def test_a_training_step_sows_nothing():
    call = functools.partial(CLASSIFIER.apply, train=True, mutable=["batch_stats"])
    assert set(jax.eval_shape(call, classifier_variables(), images())[1]) == {"batch_stats"}


def test_a_model_without_stages_is_told():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return x, x

    with pytest.raises(UserError, match="Plain shows no stages: let its __call__"):
        stages(Plain(), {}, images())


def test_more_blur_is_further():
    x, variables = images(), classifier_variables()
    blurred = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 1)) / 4
    near = perceptual_distance(see(variables, 0.9 * x + 0.1 * blurred), see(variables, x))
    far = perceptual_distance(see(variables, blurred), see(variables, x))
    assert (far > 2 * near).all() and (near > 0).all()
