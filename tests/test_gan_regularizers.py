"""What keeps a GAN's networks smooth, in the step: each term by hand, on the same draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gan_helpers import (
    LATENT,
    RATE,
    RNG,
    SIZE,
    Draws,
    Styled,
    close,
    compiled,
    descended,
    drawn_keys,
    folded,
    make,
    make_batch,
    normals,
    started,
)
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.errors import UserError
from aigc_jax.methods._gan_regularizers import read
from aigc_jax.methods.gan import Regularizers, train_step

STILL = optax.set_to_zero()


def gone(new, old):
    """What SGD subtracted, over its rate: the gradient."""
    return jax.tree.map(lambda a, b: (b - a) / RATE, new, old)


def difference(a, b):
    return jax.tree.map(jnp.subtract, a, b)


# ---- consistency ----


def shifted(images, keys, use):
    """Mirrored, and moved by up to an eighth of the side, borders mirrored."""
    found = []
    for image, key in zip(np.asarray(images), folded(keys, 200 + use), strict=True):
        u = jax.random.uniform(key, (7,))
        image = image[:, ::-1] if u[1] < 0.5 else image
        dy, dx = (int(np.round((2 * u[i] - 1) * SIZE / 8)) for i in (5, 6))
        image = np.pad(image, ((1, 1), (1, 1), (0, 0)), "symmetric")
        found.append(image[1 + dy : 1 + dy + SIZE, 1 + dx : 1 + dx + SIZE])
    return np.stack(found)


@pytest.mark.parametrize(
    "weights",
    [
        Regularizers(consistency=3.0),
        Regularizers(consistency=3.0, consistency_fake=2.0, consistency_latent=5.0),
    ],
    ids=["CR", "bCR and zCR"],
)
def test_consistency_is_the_papers(weights):
    """Zhang et al. 2020, eq. 2; Zhao et al. 2021, algorithms 1 and 2."""
    gan, batch = make(regularizers=weights), make_batch()
    state, keys, real = started(gan, batch), drawn_keys(8), batch["image"]
    z = normals(keys, LATENT)
    near = z + 0.05 * normals(folded(keys, 300), LATENT)
    draw = jax.jit(lambda g, z: gan.generator.apply({"params": g}, z, train=True))
    judge = jax.jit(lambda d, x: gan.discriminator.apply({"params": d}, x, train=True))
    g = state.g["params"]
    fake, near_fake = draw(g, z), draw(g, near)
    again, fake_again = shifted(real, keys, 0), shifted(fake, keys, 1)
    squares = lambda a, b: jnp.square(a - b).mean()  # noqa: E731

    def terms(d):
        return {
            "consistency": squares(judge(d, real), judge(d, again)),
            "consistency_fake": squares(judge(d, fake), judge(d, fake_again)),
            "consistency_latent": squares(judge(d, fake), judge(d, near_fake)),
        }

    def d_loss(d):
        loss = jax.nn.softplus(-judge(d, real)).mean() + jax.nn.softplus(judge(d, fake)).mean()
        return loss + sum(getattr(weights, name) * x for name, x in terms(d).items())

    d = descended(state.d["params"], jax.jit(jax.grad(d_loss))(state.d["params"]))

    def g_loss(g):
        loss = jax.nn.softplus(-judge(d, draw(g, z))).mean()
        push = 0.5 if weights.consistency_latent else 0.0
        return loss - push * squares(draw(g, z), draw(g, near))

    new, metrics = compiled(gan)(state, batch, RNG)
    close(new.d["params"], d)
    close(new.g["params"], descended(g, jax.jit(jax.grad(g_loss))(g)))
    for name, value in terms(state.d["params"]).items():
        assert (name in metrics) == (getattr(weights, name) > 0)
        if name in metrics:
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    if weights.consistency_latent:
        spread = squares(draw(g, z), draw(g, near))
        np.testing.assert_allclose(metrics["latent_spread"], spread, rtol=1e-4)


# ---- LeCam ----


def test_lecam_waits_for_averages_that_follow():
    """They are of both updates of D in a step; what is paid begins at `lecam_start`."""
    weights = Regularizers(lecam=0.5, lecam_decay=0.8, lecam_start=2)
    gan, batch = make(regularizers=weights, d_steps=2), make_batch(16)
    plain = compiled(make(d_steps=2))
    state = started(gan, batch)

    def logits(state, d, k):
        z = normals(drawn_keys(8, int(state.step), k), LATENT)
        fake = gan.generator.apply(state.g, z, train=True)
        judge = functools.partial(gan.discriminator.apply, d, train=True)
        return np.float64(judge(batch["image"][k::2])), np.float64(judge(fake))

    for step in range(3):
        before, old = state, dict(state.extras)
        state, metrics = compiled(gan)(state, batch, RNG)
        real, fake = (x.mean() for x in logits(before, before.d, 0))
        if step:
            real = 0.8 * old["lecam_real"] + 0.2 * real
            fake = 0.8 * old["lecam_fake"] + 0.2 * fake
        # The first update's averages are what the second one pays by.
        last = {"lecam_real": metrics["d_real"], "lecam_fake": metrics["d_fake"]}
        means = {"lecam_real": real, "lecam_fake": fake}
        expected = {name: 0.8 * means[name] + 0.2 * last[name] for name in means}
        close(state.extras, jax.tree.map(np.float32, expected), atol=1e-5)
        untaxed, _ = plain(before.replace(extras={}), batch, RNG)
        if step < 2:
            assert metrics["lecam"] == 0
            close(state.d, untaxed.d)
        else:
            assert metrics["lecam"] > 0
            assert np.abs(difference(state.d, untaxed.d)["params"]["last"]["kernel"]).max() > 1e-5


def test_lecam_is_paid_by_the_averages_so_far():
    gan = make(regularizers=Regularizers(lecam=0.5, lecam_start=0))
    batch = make_batch()
    state = started(gan, batch).replace(
        extras={"lecam_real": jnp.float32(0.3), "lecam_fake": jnp.float32(-0.2)}
    )
    new, metrics = compiled(gan)(state, batch, RNG)
    fake = gan.generator.apply(state.g, normals(drawn_keys(8), LATENT), train=True)

    def paid(d):
        judge = functools.partial(gan.discriminator.apply, {"params": d}, train=True)
        above = jnp.maximum(judge(batch["image"]) + 0.2, 0)
        return jnp.mean(above**2) + jnp.mean(jnp.maximum(0.3 - judge(fake), 0) ** 2)

    np.testing.assert_allclose(metrics["lecam"], paid(state.d["params"]), rtol=1e-4)
    plain = make()
    other, _ = compiled(plain)(state.replace(extras={}), batch, RNG)
    slope = jax.tree.map(lambda x: 0.5 * x, jax.grad(paid)(state.d["params"]))
    close(difference(gone(new.d, state.d), gone(other.d, state.d))["params"], slope, atol=1e-5)


# ---- lazy terms ----


def test_lazy_terms_come_when_they_are_due_and_compile_once():
    weights = Regularizers(path_length=1.0, path_every=2, path_decay=0.9)
    gan, batch = make(Styled(), regularizers=weights, r1=1.0, penalty_every=3), make_batch()
    run = jax.jit(functools.partial(train_step, gan))
    state, mean = started(gan, batch), 0.0
    for step in range(7):
        state, metrics = run(state, batch, RNG)
        assert (metrics["r1"] > 0) == (step % 3 == 0)
        assert (metrics["path_length"] > 0) == (metrics["path_loss"] > 0) == (step % 2 == 0)
        if step % 2 == 0:
            mean = 0.9 * mean + 0.1 * metrics["path_length"]
        np.testing.assert_allclose(state.extras["path_length"], mean, rtol=1e-5)
        assert metrics["path_length_mean"] == state.extras["path_length"]
    assert run._cache_size() == 1


def test_path_lengths_pull_g_by_their_distance_from_the_mean():
    """Karras et al. 2020, eq. 4, by the explicit Jacobian; every fourth step weighs fourfold."""
    weights = Regularizers(path_length=2.0, path_every=4)
    gan, plain, batch = make(Styled(), regularizers=weights), make(Styled()), make_batch()
    state = started(gan, batch).replace(extras={"path_length": jnp.float32(0.3)})
    keys = drawn_keys(8)[::2]  # of every other image
    z, noise = normals(keys, LATENT), normals(folded(keys, 400), SIZE, SIZE, 1)

    def lengths(g):
        apply = functools.partial(gan.generator.apply, {"params": g}, train=False)
        ws = apply(z, method="mapping")
        paint = lambda w: apply(w[None], method="synthesis").reshape(-1)  # noqa: E731
        jacobian = jax.vmap(jax.jacobian(paint))(ws)  # (4, pixels, 2, 5)
        slopes = jnp.einsum("bplw,bp->blw", jacobian, noise.reshape(4, -1) / SIZE)
        return jnp.sqrt((slopes**2).sum(-1).mean(-1))

    new, metrics = compiled(gan)(state, batch, RNG)
    other, _ = compiled(plain)(state.replace(extras={}), batch, RNG)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def by_hand(g):
        found = lengths(g)
        return jnp.square(found - 0.3).mean(), found.mean()

    (loss, mean), slope = by_hand(state.g["params"])
    np.testing.assert_allclose(metrics["path_length"], mean, rtol=1e-4)
    np.testing.assert_allclose(metrics["path_loss"], loss, rtol=1e-4)
    slope = jax.tree.map(lambda x: 8 * x, slope)
    close(difference(gone(new.g, state.g), gone(other.g, state.g))["params"], slope, atol=1e-4)


def test_penalties_weigh_as_the_steps_between_and_fade_along_a_cosine():
    fading = make(g_tx=STILL, r1=1.5, penalty_every=2, penalty_end=0.2, penalty_steps=8)
    plain, batch = make(g_tx=STILL), make_batch()
    state = started(fading, batch)

    def r1(d):
        judge = lambda x: gan_logits(d, x).sum()  # noqa: E731
        return np.float32(0.5) * jnp.square(jax.grad(judge)(batch["image"])).sum() / 8

    def gan_logits(d, x):
        return fading.discriminator.apply({"params": d}, x, train=True)

    slope = jax.grad(r1)(state.d["params"])
    for step, factor in ((0, 1.0), (2, 0.2 + 0.4 * (1 + 0.5**0.5)), (3, 0.0), (4, 0.6), (20, 0.2)):
        at = state.replace(step=jnp.int32(step))
        new, other = (compiled(gan)(at, batch, RNG)[0] for gan in (fading, plain))
        found = difference(gone(new.d, state.d), gone(other.d, state.d))["params"]
        close(found, jax.tree.map(lambda x: 3 * factor * x, slope), atol=1e-5)  # noqa: B023


# ---- orthogonality ----


def test_orthogonality_adds_its_slope():
    """4 W (W^T W off the diagonal), of kernels alone."""
    gan = make(regularizers=Regularizers(orthogonal=0.01))
    batch = make_batch()
    state = started(gan, batch)
    new, metrics = compiled(gan)(state, batch, RNG)
    other, _ = compiled(make())(state, batch, RNG)
    found = difference(gone(new.g, state.g), gone(other.g, state.g))["params"]
    total = 0.0
    for name, layer in state.g["params"].items():
        w = np.float64(layer["kernel"])
        off = w.T @ w * (1 - np.eye(w.shape[1]))
        np.testing.assert_allclose(found[name]["kernel"], 0.01 * 4 * w @ off, atol=2e-4, rtol=1e-3)
        np.testing.assert_allclose(found[name]["bias"], 0, atol=1e-6)
        total += (off**2).sum()
    np.testing.assert_allclose(metrics["orthogonal"], total, rtol=1e-5)
    assert np.abs(found["last"]["kernel"]).max() > 0.01


# ---- mistakes ----


def test_path_lengths_need_styles():
    gan = make(Draws(), regularizers=Regularizers(path_length=2.0))
    with pytest.raises(UserError, match=r"path_length is of generators with a mapping.*set it to"):
        started(gan, make_batch())


def test_read_takes_the_configs_section():
    assert read({}) == Regularizers()
    section = configs.default().regularizers
    assert read(section) == Regularizers() and set(section) == set(Regularizers._fields)
    assert read(ConfigDict({"lecam": 0.3})).lecam == 0.3


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"lecma": 0.3}, r"'regularizers\.lecma'\. Did you mean 'lecam'"),
        ({"lecam": -0.3}, r"regularizers\.lecam is -0\.3: it is out of range"),
        ({"orthogonal": float("nan")}, r"orthogonal is nan"),
        ({"lecam_decay": 1.0}, r"lecam_decay is 1\.0"),
        ({"path_decay": 1.5}, r"path_decay is 1\.5"),
        ({"path_every": 0}, r"path_every is 0"),
    ],
)
def test_read_says_what_is_wrong(fields, line):
    with pytest.raises(UserError, match=line):
        read(fields)
