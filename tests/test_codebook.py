"""The codebook, against plain numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import parallel
from aigc_jax.layers import codebook as cb
from aigc_jax.layers.codebook import Codebook

RNG = jax.random.key(0)


def vectors(n=200, dim=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def make(size=16, dim=5):
    return cb.init(RNG, size, dim)


def brute_force(embeddings, z):
    z = np.asarray(z, np.float64).reshape(-1, 1, z.shape[-1])
    return ((z - np.asarray(embeddings, np.float64)) ** 2).sum(-1).argmin(-1)


class Plain:
    """The same averages as sums over the past, each with its weight: no recursion, no JAX."""

    def __init__(self, size, decay, epsilon=1e-5):
        self.size, self.decay, self.epsilon, self.past = size, decay, epsilon, []

    def update(self, z, codes):
        members = np.eye(self.size)[codes]
        self.past.append((members.sum(0), members.T @ z.astype(np.float64)))
        weights = self.decay ** np.arange(len(self.past))[::-1]
        weights /= weights.sum()
        counts, sums = (
            sum(w * x for w, x in zip(weights, xs, strict=True))
            for xs in zip(*self.past, strict=True)
        )
        total = counts.sum()
        smoothed = (counts + self.epsilon) / (total + self.size * self.epsilon) * total
        return counts, sums, sums / smoothed[:, None]


@pytest.mark.parametrize("size", [1, 7, 16, 48, 100])
@pytest.mark.parametrize("shape", [(33,), (3, 4, 5)])
def test_nearest_is_brute_force(size, shape):
    z = vectors(int(np.prod(shape)), 6).reshape(*shape, 6)
    embeddings = vectors(size, 6, seed=1)
    codes = jax.jit(cb.nearest)(make(size, 6).replace(embeddings=embeddings), z)
    assert codes.shape == shape and codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes.reshape(-1), brute_force(embeddings, z))


def test_nearest_of_equals_is_the_first():
    embeddings = jnp.tile(vectors(24, 3), (2, 1))  # each code twice
    codes = cb.nearest(make(48, 3).replace(embeddings=embeddings), embeddings)
    np.testing.assert_array_equal(codes, np.tile(np.arange(24), 2))


def test_the_forms_of_argmin_agree():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 40, (500, 96)).astype(np.float32))
    np.testing.assert_array_equal(cb._argmin_by_groups(x), cb._argmin(x))
    np.testing.assert_array_equal(cb._argmin(x), np.argmin(x, -1))


def test_lookup_inverts_nearest():
    book = make(16, 5)
    codes = np.random.default_rng(0).integers(0, 16, (4, 3, 3)).astype(np.int32)
    quantized = cb.lookup(book, codes)
    assert quantized.shape == (4, 3, 3, 5)
    np.testing.assert_array_equal(cb.nearest(book, quantized), codes)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_averages_step_by_step(decay):
    plain, book = Plain(16, decay), make()
    step = jax.jit(functools.partial(cb.update, decay=decay))
    for t in range(6):
        z = vectors(seed=t)
        codes = np.asarray(cb.nearest(book, z))
        book, revived = step(book, z, codes, jnp.full((16, 5), np.nan))
        counts, sums, embeddings = plain.update(z, codes)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        close(book.counts, counts)
        close(book.sums, sums)
        close(book.embeddings, embeddings)
        assert revived == 0 and book.steps == t + 1


def test_after_one_update_codes_are_the_means_of_their_vectors():
    z = vectors()
    book = make()
    codes = np.asarray(cb.nearest(book, z))
    new, _ = cb.update(book, z, codes, book.embeddings)
    for k in np.unique(codes):
        np.testing.assert_allclose(new.embeddings[k], z[codes == k].mean(0), atol=1e-4)


def far_away(used=4):
    """A codebook of 16 of which only the first `used` are near any vector."""
    embeddings = jnp.asarray(vectors(16)).at[used:].set(1e3)
    return make().replace(embeddings=embeddings)


def test_revival_takes_fresh_vectors_and_keeps_them():
    """A revived code is used, and stays where it was put: both averages were reset."""
    z, book = vectors(), far_away()
    fresh = cb.draw(z, 16, RNG)
    codes = cb.nearest(book, z)
    new, revived = cb.update(book, z, codes, fresh, revive_below=0.05)
    assert revived == 12
    np.testing.assert_array_equal(new.embeddings[4:], fresh[4:])
    floor = 0.05 * 200 / 16
    np.testing.assert_allclose(new.counts[4:], floor, rtol=1e-6)
    np.testing.assert_allclose(new.sums[4:], floor * fresh[4:], rtol=1e-6)
    assert set(np.unique(cb.nearest(new, z))) >= set(range(4, 16))
    # A step in which nothing chooses them, and none is revived, leaves them in place.
    nowhere = jnp.zeros(200, jnp.int32)
    later, _ = cb.update(new, z, nowhere, fresh)
    np.testing.assert_allclose(later.embeddings[4:], fresh[4:], rtol=1e-3)


def test_without_revival_a_code_that_nothing_chose_fades_to_zero():
    z, book = vectors(), far_away()
    new, revived = cb.update(book, z, cb.nearest(book, z), cb.draw(z, 16, RNG))
    assert revived == 0 and np.all(new.counts[4:] == 0)
    np.testing.assert_array_equal(new.embeddings[4:], 0)


def test_a_code_in_use_is_not_revived():
    z, book = vectors(320), make()
    codes = np.arange(320, dtype=np.int32) % 16  # even use: 20 each
    for share, dead in ((0.99, 0), (1.01, 16)):
        _, revived = cb.update(book, z, codes, book.embeddings, revive_below=share)
        assert revived == dead


@pytest.mark.parametrize("num", [1, 16, 50, 120])
def test_draw_takes_each_vector_once_before_any_twice(num):
    z = vectors(50)
    drawn = np.asarray(cb.draw(z.reshape(5, 10, 5), num, RNG))
    counts = (drawn[:, None] == z[None]).all(-1).sum(0)
    assert counts.sum() == num and counts.max() - counts.min() <= 1
    if num == 16:
        assert not np.array_equal(drawn, z[:16])  # at random
        assert not np.array_equal(drawn, cb.draw(z, 16, jax.random.key(1)))


def test_start_takes_fresh_vectors_before_the_first_update_only():
    book, fresh = make(), jnp.asarray(vectors(16))
    np.testing.assert_array_equal(cb.start(book, fresh).embeddings, fresh)
    later, _ = cb.update(book, vectors(), cb.nearest(book, vectors()), fresh)
    np.testing.assert_array_equal(cb.start(later, fresh).embeddings, later.embeddings)


def test_init_is_uniform_of_variance_one_over_dim():
    embeddings = cb.init(RNG, 512, 64).embeddings
    assert embeddings.shape == (512, 64) and jnp.abs(embeddings).max() < (3 / 64) ** 0.5
    np.testing.assert_allclose(embeddings.var(), 1 / 64, rtol=0.02)


def test_histogram_and_perplexity():
    codes = np.array([[0, 1, 1], [3, 3, 3]], np.int32)
    counts = cb.histogram(codes, 5)
    np.testing.assert_array_equal(counts, [1, 2, 0, 3, 0])
    p = np.array([1, 2, 3]) / 6
    np.testing.assert_allclose(cb.perplexity(counts), np.exp(-(p * np.log(p)).sum()), rtol=1e-6)
    one, even = np.eye(7, dtype=np.float32)[2], np.full(7, 3.0, np.float32)
    np.testing.assert_allclose(cb.perplexity(one), 1, rtol=1e-6)
    np.testing.assert_allclose(cb.perplexity(even), 7, rtol=1e-6)


def test_every_layout_has_the_same_codebook():
    """Five updates with start and revival, on 8 devices as on one."""

    def step(book: Codebook, z, rng, axis_name):
        fresh = cb.draw(z, 16, jax.random.fold_in(rng, book.steps), axis_name)
        book = cb.start(book, fresh)
        codes = cb.nearest(book, z)
        book, revived = cb.update(book, z, codes, fresh, 0.9, 1e-5, 0.5, axis_name)
        return book, {"counts": cb.histogram(codes, 16, axis_name), "revived": revived}

    def run(devices):
        layout = parallel.layout("pmap", jax.devices()[:devices])
        compiled = layout.compile(functools.partial(step, axis_name=layout.axis_name))
        book, seen = layout.place_state(make()), []
        for t in range(5):
            z = layout.place_batch({"z": vectors(64, seed=t)})
            book, metrics = compiled(book, z["z"], RNG)
            seen.append(jax.tree.map(np.asarray, metrics))
        return jax.tree.map(np.asarray, book), seen

    (one, seen_one), (eight, seen_eight) = run(1), run(8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one, eight)
    jax.tree.map(np.testing.assert_array_equal, seen_one, seen_eight)
    assert sum(int(metrics["revived"]) for metrics in seen_one) > 0
