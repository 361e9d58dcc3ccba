"""What is told of translations, against numpy, with fillers, copies and constants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from translation_helpers import check_paired, domains

from aigc_jax.metrics import translation

AXIS = "data"


def paired(size=12, **images):
    batch = domains(4, size=size)
    valid = np.array([1, 1, 0, 1], np.float32)
    return batch, valid, translation.paired_sums(batch["b"], valid, images or {"": batch["a"]})


def test_paired_sums_are_numpys():
    batch = domains(4)
    made, constant = 0.92 * batch["b"], np.full_like(batch["b"], 0.3)
    images = {"constant_": constant, "copied_": batch["a"], "": made}
    _, valid, found = paired(**images)
    check_paired(found, batch["b"], valid, constant, batch["a"], made)
    levels = [np.rint(127.5 * (x.astype(np.float64) + 1)) for x in (made, batch["b"])]
    share = (np.abs(levels[0] - levels[1]).max(-1) < 5).mean((1, 2))
    assert 0.2 < share.mean() < 0.8
    np.testing.assert_allclose(found["within_5"][0], (share * valid).sum(), atol=1e-5)
    # A filler counts for nothing, whatever it is.
    images[""] = made.copy()
    images[""][2] = 1
    again = paired(**images)[2]
    assert all(again[name] == found[name] for name in found)


def test_an_exact_copy_is_finite():
    batch = domains(4)
    found = paired(**{"": batch["b"]})[2]
    expected = {"psnr": 300.0, "ssim": 3.0, "l1": 0.0, "within_5": 3.0}
    assert {name: float(total) for name, (total, _) in found.items()} == pytest.approx(expected)


def test_small_images_have_an_ssim():
    _, _, found = paired(size=8)
    assert np.isfinite(found["ssim"][0])


def test_running_colour_is_the_mean_over_batches_and_devices():
    batches = [domains(8, seed=t)["a"] for t in range(3)]
    mean, shared = jnp.zeros(3), jnp.zeros(3)
    update = jax.pmap(
        functools.partial(translation.running_colour, axis_name=AXIS),
        axis_name=AXIS, in_axes=(None, 0, None), out_axes=None,
    )  # fmt: skip
    for t, images in enumerate(batches):
        mean = translation.running_colour(mean, images, jnp.int32(t), None)
        shared = update(shared, images[:, None], jnp.int32(t))
    expected = np.concatenate(batches).mean((0, 1, 2))
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_allclose(shared, expected, atol=1e-6)


def test_constant_has_the_targets_channels():
    made = translation.constant(jnp.array([0.1, 0.2, 0.3]), jnp.zeros((2, 4, 6, 1)))
    assert made.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(made[1, 3, 5], [0.1, 0.2, 0.3])


def test_correlation_is_numpys():
    x, y = domains(4)["a"], domains(4, seed=3)["b"]
    y = 0.5 * x + 0.5 * y
    expected = [
        np.corrcoef(a.mean(-1).ravel(), b.mean(-1).ravel())[0, 1] for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(translation.correlation(x, y), np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(translation.correlation(x, -x), -1, rtol=1e-5)
    assert translation.correlation(x, jnp.zeros_like(x)) == 0  # of a constant nothing is told
