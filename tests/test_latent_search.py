"""Latent search against linear programs, dense solvers and the definitions; and a real GAN's."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from aigc_jax import config as configs
from aigc_jax import runs
from aigc_jax.errors import UserError
from aigc_jax.latent_search import Search, blended, context_weights, inside, search
from aigc_jax.losses import adversarial
from aigc_jax.methods import gan
from aigc_jax.types import to_uint8

RNG = jax.random.key(0)
SIZE, LATENTS, CLASSES = 10, 6, 3


def holes(n, size=SIZE, seed=0, share=0.4):
    return (np.random.default_rng(seed).uniform(size=(n, size, size, 1)) > share).astype(np.float32)


def pictures(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# ---- weights, the sphere, and the seam ----


def test_context_weights_are_the_share_of_the_hole_around():
    mask = np.ones((2, 9, 12, 1), np.float32)
    mask[0, 2:5, 3:9], mask[1, 0, 0], mask[1, 8, 4:] = 0, 0, 0
    expected = np.zeros_like(mask)
    for b, y, x in np.argwhere(mask[..., 0]):
        around = mask[b, max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
        expected[b, y, x] = 1 - around.mean()
    np.testing.assert_allclose(context_weights(jnp.array(mask)), expected, atol=1e-6)


def test_inside_moves_what_is_out_of_the_sphere_onto_it():
    z = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    found = np.asarray(inside(z))
    before, after = (np.linalg.norm(x, axis=1, keepdims=True) for x in (z, found))
    assert (before > 6**0.5).any() and (before < 6**0.5).any()
    np.testing.assert_allclose(after, np.minimum(before, 6**0.5), rtol=1e-5)
    np.testing.assert_allclose(found * before, z * after, rtol=1e-4)
    np.testing.assert_array_equal(inside(np.zeros((1, 4), np.float32)), 0)


def dense_blend(made, image, known):
    """One channel of one image by a dense solve of the discrete Poisson equation."""
    unknown = {place: i for i, place in enumerate(map(tuple, np.argwhere(~known)))}
    matrix, right = np.zeros((len(unknown),) * 2), np.zeros(len(unknown))
    for (y, x), i in unknown.items():
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= place[0] < known.shape[0] and 0 <= place[1] < known.shape[1]):
                continue
            matrix[i, i] += 1
            right[i] += made[y, x] - made[place]
            if known[place]:
                right[i] += image[place]
            else:
                matrix[i, unknown[place]] -= 1
    found = image.astype(np.float64)
    found[~known] = np.linalg.solve(matrix, right)
    return found


def test_blended_solves_the_poisson_equation():
    made, image = pictures(2, 3, 9, 11, 2)
    mask = np.ones((3, 9, 11, 1), np.float32)
    mask[0, 2:7, 3:8] = mask[1, :4, 6:] = 0  # the second at the border
    mask[2] = holes(1, 11)[0, :9]  # and many small ones
    found = np.asarray(jax.jit(functools.partial(blended, tolerance=1e-7))(made, image, mask))
    known = np.broadcast_to(mask > 0, image.shape)
    np.testing.assert_array_equal(found[known], image[known])
    for b in range(3):
        for c in range(2):
            expected = dense_blend(made[b, ..., c], image[b, ..., c], mask[b, ..., 0] > 0)
            np.testing.assert_allclose(found[b, ..., c], expected, atol=2e-5)


def test_blended_takes_away_an_offset():
    image = pictures(1, 32, 32, 3)
    mask = np.ones((1, 32, 32, 1), np.float32)
    mask[:, 6:26, 6:26] = 0
    found = jax.jit(blended)(image + np.float32(0.3), image, mask)
    np.testing.assert_allclose(found, image, atol=2e-4)


# ---- the search, of linear generators ----


def linear(**functions):
    """Images that are affine in z, of an offset by the class."""

    def decode(spec, state, z, batch):
        offset = state["offset"][batch["label"]] if "label" in batch else 0.0
        return (z @ state["matrix"]).reshape(-1, SIZE, SIZE, 1) + offset

    def latents(spec, rng, batch):
        keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(batch["index"])
        return jax.vmap(lambda key: jax.random.normal(key, (LATENTS,)))(keys)

    return SimpleNamespace(decode=decode, latents=latents, **functions)


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(2)
    return {
        "matrix": rng.normal(size=(LATENTS, SIZE * SIZE)).astype(np.float32) / 4,
        "offset": rng.normal(size=(CLASSES, SIZE, SIZE, 1)).astype(np.float32),
    }


def searched(method, state, batch, **settings):
    settings = {"steps": 400, "restarts": 2, "lr": 0.1} | settings
    function = jax.jit(functools.partial(search, method, None, **settings))
    return np.asarray(function(state, RNG, batch))


def holed(state, n=3, labels=None, noise=0.3):
    """Images of z within the sphere, with noise, and their masks; what is in the holes is noise."""
    z = 0.6 * np.random.default_rng(3).normal(size=(n, LATENTS)).astype(np.float32)
    whole = (z @ state["matrix"]).reshape(n, SIZE, SIZE, 1)
    whole = whole if labels is None else whole + state["offset"][labels]
    mask = holes(n)
    return {
        "image": np.where(mask > 0, whole + noise * pictures(n, SIZE, SIZE, 1), 5),
        "mask": mask,
        "index": np.arange(n, dtype=np.int32),
    }, whole


def least_absolute(matrix, image, weight):
    """min over z of sum w |z M - x|, by a linear program in z and the absolute values t."""
    pixels = len(image)
    block = np.block([[matrix.T, -np.eye(pixels)], [-matrix.T, -np.eye(pixels)]])
    cost = np.concatenate([np.zeros(LATENTS), weight])
    bounds = [(None, None)] * LATENTS + [(0, None)] * pixels
    found = scipy.optimize.linprog(cost, block, np.concatenate([image, -image]), bounds=bounds)
    return found.x[:LATENTS], found.fun


def test_search_finds_the_least_weighted_absolute_difference(state):
    batch, _ = holed(state)
    made = searched(linear(), state, batch, prior=0.0, steps=1500)
    weight = np.asarray(context_weights(jnp.array(batch["mask"]))).reshape(3, -1)
    for b in range(3):
        image = batch["image"][b].ravel()
        z, least = least_absolute(state["matrix"], image, weight[b])
        assert np.linalg.norm(z) < LATENTS**0.5  # or the sphere had held it
        cost = (weight[b] * abs(made[b].ravel() - image)).sum()
        assert least <= cost * (1 + 1e-5) < least * 1.002
        np.testing.assert_allclose(made[b].ravel(), z @ state["matrix"], atol=0.02)


def test_the_normal_prior_weighs_half_a_square(state):
    """Against a minimiser that knows no gradients."""
    batch, _ = holed(state, n=1, noise=0.0)
    made = searched(linear(), state, batch, prior=50.0, steps=1500)
    weight = np.asarray(context_weights(jnp.array(batch["mask"]))).ravel()
    image, matrix = batch["image"].ravel(), state["matrix"].astype(np.float64)

    def cost(z):
        return (weight * abs(z @ matrix - image)).sum() + 25 * (z @ z)

    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 20000, "maxfev": 20000}
    best = scipy.optimize.minimize(cost, np.zeros(LATENTS), method="Nelder-Mead", options=options)
    np.testing.assert_allclose(made.ravel(), best.x @ matrix, atol=2e-3)


def test_realism_counts_by_its_weight(state):
    """What looks real is here what is dark: much of it, and the images fit nothing else."""
    method = linear(realism=lambda spec, state, images, batch: -images.sum((1, 2, 3)))
    batch, _ = holed(state)
    darkest = -state["matrix"].sum(1)
    darkest *= LATENTS**0.5 / np.linalg.norm(darkest)
    made = searched(method, state, batch, prior=1e4, steps=1500)
    for image in made:
        np.testing.assert_allclose(image.ravel(), darkest @ state["matrix"], atol=0.02)
    published = searched(method, state, batch)
    same = searched(method, state, batch, prior=0.003)
    np.testing.assert_array_equal(published, same)


def test_what_is_in_the_hole_plays_no_part(state):
    batch, _ = holed(state)
    other = {**batch, "image": np.where(batch["mask"] > 0, batch["image"], -3)}
    np.testing.assert_array_equal(*(searched(linear(), state, x, steps=20) for x in (batch, other)))


def test_the_best_start_is_taken_of_each_image(state):
    """One start for each class: that of the image's own class fits to nothing."""
    labels = np.array([2, 0, 1])
    batch, whole = holed(state, labels=labels, noise=0.0)
    tried = np.tile(np.arange(CLASSES, dtype=np.int32), (3, 1))
    made = searched(linear(), state, {**batch, "labels": tried}, restarts=3, prior=0.0)
    np.testing.assert_allclose(made, whole, atol=0.02)
    without = searched(linear(), state, {**batch, "labels": tried % 2}, restarts=3, prior=0.0)
    np.testing.assert_allclose(without[1:], whole[1:], atol=0.02)
    assert abs(without - whole)[0].mean() > 0.2


# ---- runs ----


@pytest.fixture(scope="module")
def gan_run():
    """A conditional DCGAN as it is born, but for louder kernels: a smooth map, none too easy."""
    config = configs.load("digits_dcgan")
    config.generator.update(width=4, latent_dim=8)
    config.discriminator.width = 4
    config.update(image_size=16, channels=1, num_classes=10)
    spec = gan.from_config(config)
    batch = {"image": np.zeros((1, 16, 16, 1), np.float32), "label": np.zeros(1, np.int32)}
    state = jax.jit(functools.partial(gan.init_state, spec))(RNG, batch)
    loud = jax.tree.map(lambda x: x * 14 if x.ndim > 1 else x, state.ema["params"])
    state = state.replace(ema={**state.ema, "params": loud})
    return runs.Run(Path("unsaved"), config, gan, spec, state, 0)


@pytest.fixture(scope="module")
def drawn(gan_run):
    """Images that the run itself draws, uint8, their labels and masks."""
    n = 10
    batch = {"index": np.arange(n, dtype=np.int32), "label": np.arange(n, dtype=np.int32)}
    sample = jax.jit(functools.partial(gan_run.method.sample, gan_run.spec))
    images = np.asarray(to_uint8(sample(gan_run.state, jax.random.key(5), batch)))
    assert 30 < images.std() < 90
    mask = np.ones((n, 16, 16, 1), np.float32)
    mask[:, 5:11, 4:12] = 0
    return images, batch["label"], mask


@pytest.fixture(scope="module")
def filler(gan_run):
    return Search(gan_run, steps=120, restarts=2, batch_size=8)


def hole_error(made, images, mask):
    hole = np.broadcast_to(mask < 0.5, images.shape)
    return abs(np.int32(made) - images)[hole].mean()


def test_realism_is_minus_the_generators_loss(gan_run, drawn):
    images, label, _ = drawn
    x = images.astype(np.float32) / 127.5 - 1
    spec, state = gan_run.spec, gan_run.state
    found = np.asarray(jax.jit(functools.partial(gan.realism, spec))(state, x, {"label": label}))
    logits = np.float64(spec.discriminator.apply(state.d, x, label, train=False))
    np.testing.assert_allclose(found, -np.log1p(np.exp(-logits)), rtol=1e-4, atol=1e-6)
    expected = adversarial.non_saturating.generator(jnp.array(logits, jnp.float32))
    np.testing.assert_allclose(found.mean(), -expected, rtol=1e-4)


def test_holes_of_its_own_images_are_filled(gan_run, drawn, filler):
    images, labels, mask = drawn
    made = filler(images, mask, labels)
    known = np.broadcast_to(mask > 0.5, images.shape)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[known], images[known])
    flat = np.broadcast_to(
        (images * mask).sum((1, 2), keepdims=True) / mask.sum((1, 2), keepdims=True), images.shape
    )
    assert hole_error(made, images, mask) < hole_error(flat, images, mask) / 2
    before = Search(gan_run, steps=1, restarts=2, batch_size=8)(images, mask, labels)
    assert hole_error(made, images, mask) < hole_error(before, images, mask) / 2
    np.testing.assert_array_equal(made, filler(images, mask, labels))
    assert not np.array_equal(made, filler(images, mask, labels, seed=1))


def test_images_are_filled_alike_in_any_company(gan_run, drawn, filler):
    """On eight devices in two batches, and on one in one."""
    images, labels, mask = drawn
    made = filler(images, mask, labels)
    np.testing.assert_array_equal(filler(images[:3], mask[:3], labels[:3]), made[:3])
    whole = functools.partial(
        search, gan_run.method, gan_run.spec, steps=120, restarts=2, lr=0.1, prior=None
    )
    batch = {
        "image": images.astype(np.float32) / 127.5 - 1,
        "mask": mask,
        "index": np.arange(len(images), dtype=np.int32),
        "labels": np.repeat(labels[:, None], 2, 1),
    }
    found = np.asarray(to_uint8(jax.jit(whole)(gan_run.state, jax.random.key(0), batch)))
    off = abs(np.int32(np.where(mask > 0.5, images, found)) - made)
    assert np.mean(off > 3) < 0.02  # Adam magnifies what rounds otherwise


def test_classes_are_tried_where_none_is_given(gan_run):
    tried = Search(gan_run, restarts=10)._tried(None, range(30), seed=0)
    assert tried.shape == (30, 10) and tried.dtype == np.int32
    assert (np.sort(tried, 1) == np.arange(10)).all() and len(np.unique(tried[:, 0])) > 5
    np.testing.assert_array_equal(Search(gan_run, restarts=10)._tried(None, range(7), 0), tried[:7])


def test_blending_changes_the_hole_alone(gan_run, drawn, filler):
    images, labels, mask = (x[:3] for x in drawn)
    made = Search(gan_run, steps=5, restarts=1, blend=True, batch_size=8)(images, mask, labels)
    plain = Search(gan_run, steps=5, restarts=1, batch_size=8)(images, mask, labels)
    known = np.broadcast_to(mask > 0.5, images.shape)
    np.testing.assert_array_equal(made[known], images[known])

    def seam(x):  # the steps from the known rows to the hole's first
        return abs(np.diff(np.int32(x)[:, 4:6, 4:12], axis=1)).mean()

    assert seam(made) < seam(plain)


def test_mistakes_are_told(gan_run, drawn, filler):
    images, labels, mask = drawn
    with pytest.raises(UserError, match=r"16x16x3 .*draws 16x16x1"):
        filler(np.repeat(images, 3, -1), mask, labels)
    with pytest.raises(UserError, match="float32"):
        filler(images.astype(np.float32), mask, labels)
    with pytest.raises(UserError, match=r"shape \(9, 16, 16, 1\)"):
        filler(images, mask[:9], labels)
    with pytest.raises(UserError, match="Image 4 is all hole"):
        filler(images, mask * (np.arange(10) != 4)[:, None, None, None], labels)
    with pytest.raises(UserError, match="from 0 to 9 for each of 10"):
        filler(images, mask, labels + 1)
    with pytest.raises(UserError, match="--restarts 0"):
        Search(gan_run, restarts=0)
    config = gan_run.config.copy_and_resolve_references()
    config.method = "classifier"
    with pytest.raises(UserError, match="take a run of gan or vae"):
        Search(SimpleNamespace(config=config))
