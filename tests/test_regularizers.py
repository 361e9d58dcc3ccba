"""Regularizers against their formulas in NumPy, finite differences and explicit Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.losses import regularizers


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- LeCam ----


def test_lecam_is_the_formula():
    """Tseng et al. 2021, eq. 6, with the rectifiers of the authors' code."""
    real, fake = drawn(9), drawn(7, seed=1)
    found = regularizers.lecam(real, fake, jnp.float32(0.3), jnp.float32(-0.4))
    expected = np.mean([max(r + 0.4, 0) ** 2 for r in real])
    expected += np.mean([max(0.3 - f, 0) ** 2 for f in fake])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lecam_is_nothing_between_the_means():
    """Real logits below the fake ones' mean, and fake ones above the real ones'."""
    below, above = jnp.array([-2.0, -1.0]), jnp.array([1.0, 3.0])
    assert regularizers.lecam(below, above, jnp.float32(1.0), jnp.float32(-1.0)) == 0
    slopes = jax.grad(regularizers.lecam, (0, 1))(above, below, jnp.float32(1.0), jnp.float32(-1.0))
    assert (slopes[0] > 0).all() and (slopes[1] < 0).all()  # together


# ---- path lengths ----

W1, W2 = drawn(2 * 3, 8, seed=2), drawn(8, 4 * 4 * 2, seed=3)
WS = drawn(3, 2, 3, seed=4)


def synthesis(ws):
    return (jnp.tanh(ws.reshape(len(ws), -1) @ W1) @ W2).reshape(-1, 4, 4, 2)


def jacobians():
    """(B, pixels, L, W)."""
    paint = lambda w: synthesis(w[None]).reshape(-1)  # noqa: E731
    return np.float64(jax.vmap(jax.jacobian(paint))(WS))


def test_path_lengths_are_of_the_jacobian():
    noise = drawn(3, 4, 4, 2, seed=5)
    found = regularizers.path_lengths(synthesis, WS, noise)
    slopes = np.einsum("bplw,bp->blw", jacobians(), noise.reshape(3, -1) / 4)
    np.testing.assert_allclose(found, np.sqrt((slopes**2).sum(-1).mean(-1)), rtol=1e-5)


def test_path_lengths_tell_the_jacobians_norm():
    """E |J^T y|^2 = |J|_F^2 of y ~ N(0, 1), here over pixels and layers."""
    draws = 20_000
    noise = jax.random.normal(jax.random.key(0), (draws, 3, 4, 4, 2))
    lengths = jax.vmap(lambda y: regularizers.path_lengths(synthesis, WS, y))(noise)
    found, exact = (lengths**2).mean(0), (jacobians() ** 2).sum((1, 2, 3)) / 16 / 2
    error = np.std(lengths**2, 0) / draws**0.5
    assert (np.abs(found - exact) < 4 * error).all() and (error < 0.02 * exact).all()


def test_path_lengths_of_a_dead_synthesis_have_a_gradient():
    """The slope of the root is infinite at 0."""

    def loss(w):
        dead = lambda ws: w * synthesis(ws)  # noqa: E731
        return regularizers.path_lengths(dead, WS, drawn(3, 4, 4, 2)).sum()

    assert jnp.isfinite(jax.grad(loss)(jnp.float32(0)))


# ---- orthogonality ----

PARAMS = {
    "conv": {"kernel": drawn(2, 2, 3, 4, seed=6), "bias": drawn(4, seed=7)},
    "dense": {"kernel": drawn(5, 3, seed=8)},
    "norm": {"scale": drawn(4, seed=9)},
    "shared": {"embedding": drawn(6, 4, seed=10)},
    "block": {"projection": {"kernel": drawn(4, 4, seed=11)}},
}


def brute(*kernels):
    total = 0.0
    for kernel in kernels:
        columns = np.float64(kernel).reshape(-1, kernel.shape[-1]).T
        for i, a in enumerate(columns):
            total += sum((a @ b) ** 2 for j, b in enumerate(columns) if j != i)
    return total


def test_orthogonal_is_of_every_pair_of_filters():
    """Brock et al. 2019, eq. 3; of kernels that are no embeddings."""
    found = regularizers.orthogonal(PARAMS)
    expected = brute(PARAMS["conv"]["kernel"], PARAMS["dense"]["kernel"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert regularizers.orthogonal({"norm": PARAMS["norm"]}) == 0


def test_orthogonal_slopes():
    """By central differences of the loops above; zeros for what is left out."""
    slopes = jax.grad(regularizers.orthogonal)(PARAMS)
    kernel = np.float64(PARAMS["dense"]["kernel"])
    for place in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[place] = 1e-4
        measured = (brute(kernel + step) - brute(kernel - step)) / 2e-4
        np.testing.assert_allclose(slopes["dense"]["kernel"][place], measured, rtol=1e-4, atol=1e-4)
    left_out = {**slopes, "dense": {}, "conv": {"bias": slopes["conv"]["bias"]}}
    assert not any(np.any(x) for x in jax.tree.leaves(left_out))


def test_orthogonal_filters_of_any_length_cost_nothing():
    kernel = np.linalg.qr(drawn(6, 4))[0] * np.array([1, 2, 0.5, 3])
    kernel = kernel.astype(np.float32)
    assert regularizers.orthogonal({"kernel": kernel}) < 1e-10
    assert np.abs(jax.grad(regularizers.orthogonal)({"kernel": kernel})["kernel"]).max() < 1e-4
