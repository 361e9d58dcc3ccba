"""The pool of generated images against the same in plain Python, on every layout of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import parallel
from aigc_jax.methods._cyclegan_pool import Pool, draw, init, query

RNG = jax.random.key(3)


class PlainPool:
    """Zhu et al. 2017, section 4, an image at a time; the draws are given."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, images, draws):
        seen = []
        for image, (coin, place) in zip(images, draws, strict=True):
            if len(self.images) < self.size:
                self.images.append(image)
                seen.append(image)
            elif coin:
                seen.append(self.images[place])
                self.images[place] = image
            else:
                seen.append(image)
        return np.stack(seen)


def pictures(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 2, 3, 1)).astype(np.float32)


def draws(rng, n, size):
    return [jax.device_get(draw(jax.random.fold_in(rng, i), size)) for i in range(n)]


@pytest.mark.parametrize(("size", "n"), [(1, 1), (5, 1), (6, 3), (7, 3), (3, 8), (4, 4)])
def test_is_a_pool_in_plain_python(size, n):
    """Until it is full and long after, filled within a batch too."""
    plain, pool = PlainPool(size), init(size, jnp.zeros((2, 3, 1)))
    ask, exchanged = jax.jit(query), 0
    for t in range(24 // n + 4):
        rng, images = jax.random.fold_in(RNG, t), pictures(n, t)
        pool, seen = ask(pool, images, rng)
        np.testing.assert_array_equal(seen, plain.query(images, draws(rng, n, size)))
        assert int(pool.count) == len(plain.images)
        np.testing.assert_array_equal(pool.images[: len(plain.images)], np.stack(plain.images))
        exchanged += int((np.asarray(seen) != images).any((1, 2, 3)).sum())
    assert exchanged > 2


def test_half_are_exchanged_and_every_place_alike():
    coins, places = jax.vmap(functools.partial(draw, size=4))(jax.random.split(RNG, 4000))
    assert abs(float(coins.mean()) - 0.5) < 0.03
    assert np.abs(np.bincount(places, minlength=4) / 4000 - 0.25).max() < 0.03
    assert abs(np.corrcoef(coins, places)[0, 1]) < 0.05


def test_without_a_pool_images_are_seen_as_they_are():
    images = pictures(4)
    assert init(0, jnp.zeros((2, 3, 1))) is None
    pool, seen = query(None, images, RNG)
    assert pool is None and seen is images


@functools.cache
def on(mode, devices, size):
    layout = parallel.layout(mode, jax.devices()[:devices])

    def step(pool, batch, rng):
        rng = jax.random.fold_in(rng, batch["step"][0])
        pool, seen = query(pool, batch["image"], rng, layout.axis_name)
        return pool, parallel.all_examples(seen, layout.axis_name)

    pool = layout.place_state(init(size, jnp.zeros((2, 3, 1))))
    compiled, seen = layout.compile(step, pool), []
    for t in range(5):
        batch = {"image": pictures(16, t), "step": np.full(16, t, np.int32)}
        pool, found = compiled(pool, layout.place_batch(batch), RNG)
        seen.append(np.asarray(found))
    return jax.device_get(pool), np.stack(seen)


@pytest.mark.parametrize(("mode", "size"), [("pmap", 7), ("jit", 24)])
def test_every_layout_has_the_same_pool(mode, size):
    pool, seen = on(mode, 8, size)
    expected, expected_seen = on("jit", 1, size)
    np.testing.assert_array_equal(pool.images, expected.images)
    np.testing.assert_array_equal(seen, expected_seen)
    assert pool.count == expected.count == size


def test_a_part_is_filled_first():
    pool, _ = jax.jit(query)(init(5, jnp.zeros((2, 3, 1))), pictures(3), RNG)
    assert isinstance(pool, Pool) and pool.count == 3 and not np.any(pool.images[3:])
