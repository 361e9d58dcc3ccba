"""What a GAN's discriminator sees: DiffAugment and ADA, their statistics, and the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.augment import ada
from aigc_jax.augment.diffaugment import diffaugment, parse
from aigc_jax.errors import UserError
from aigc_jax.methods import gan as method
from aigc_jax.methods._gan_augment import Ada
from aigc_jax.methods.gan import GAN, init_state, train_step
from aigc_jax.models.dcgan import Discriminator, Generator

RNG = jax.random.key(0)


def noise(b=4, size=16, channels=3, seed=0):
    return jax.random.uniform(jax.random.key(seed), (b, size, size, channels), minval=-1)


def keys(b):
    return jax.random.split(RNG, b)


# ---- DiffAugment ----


def test_color_is_the_papers():
    """Each step by its definition, of what it leaves unchanged."""
    x = noise(300)
    y = diffaugment(("color",), x, keys(300))
    # Contrast about the mean of all, saturation about each pixel's: differences scale, means move.
    means = lambda x: np.asarray(x.mean((1, 2, 3)))  # noqa: E731
    shift = means(y) - means(x)
    assert shift.min() > -0.5 and shift.max() < 0.5 and abs(shift.std() - 12**-0.5) < 0.03
    grey = lambda x: np.asarray(x.mean(-1) - x.mean((1, 2, 3))[:, None, None])  # noqa: E731
    contrast = grey(y) / grey(x)
    np.testing.assert_allclose(
        contrast, np.median(contrast, (1, 2))[:, None, None] + 0 * contrast, rtol=0.05
    )
    factors = np.median(contrast, (1, 2))
    assert factors.min() > 0.5 and factors.max() < 1.5 and abs(factors.mean() - 1) < 0.05
    colour = lambda x: np.asarray(x - x.mean(-1, keepdims=True))  # noqa: E731
    saturation = np.median(colour(y) / colour(x), (1, 2, 3)) / factors
    assert saturation.min() > 0 and saturation.max() < 2 and abs(saturation.mean() - 1) < 0.1


def test_translation_fills_with_zeros():
    x = noise(500, channels=1)
    y = np.asarray(diffaugment(("translation",), x, keys(500)))
    seen = set()
    for before, after in zip(np.asarray(x)[..., 0], y[..., 0], strict=True):
        rows, columns = (np.flatnonzero(after.any(axis)) for axis in (1, 0))
        dy, dx = (-r[0] if r[0] else 15 - r[-1] for r in (rows, columns))
        padded = np.pad(before, 2)[2 + dy : 18 + dy, 2 + dx : 18 + dx]
        np.testing.assert_array_equal(after, padded)
        seen.add((int(dy), int(dx)))
    assert seen == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_cutout_is_half_the_side():
    holes = np.asarray(diffaugment(("cutout",), jnp.ones((500, 16, 16, 1)), keys(500)))[..., 0] == 0
    areas = holes.sum((1, 2))
    assert areas.max() == 64 and areas.min() >= 16
    rows, columns = holes.any(2), holes.any(1)
    np.testing.assert_array_equal(areas, rows.sum(1) * columns.sum(1))
    assert (rows.mean(0) > 0.2).all()  # the middle is anywhere


@pytest.mark.parametrize("policies", [("color",), ("translation",), ("cutout",), ("ada",)])
def test_gradients_reach_the_images(policies):
    x, weights = noise(2, 8), noise(2, 8, seed=1)

    def f(x):
        if policies == ("ada",):
            return (ada.bgc(x, keys(2), jnp.float32(1.0)) * weights).sum()
        return (diffaugment(policies, x, keys(2)) * weights).sum()

    direction = noise(2, 8, seed=2)
    slope = (jax.grad(f)(x) * direction).sum()
    measured = (f(x + 0.01 * direction) - f(x - 0.01 * direction)) / 0.02
    np.testing.assert_allclose(slope, measured, rtol=1e-2, atol=1e-2)


def test_an_unknown_policy():
    with pytest.raises(
        UserError, match=r"unknown policy 'colour' of DiffAugment\. Did you mean 'color'"
    ):
        parse("colour,cutout")


# ---- ADA ----


@pytest.mark.parametrize("channels", [1, 3])
def test_at_0_nothing_is_changed(channels):
    x = noise(8, channels=channels)
    np.testing.assert_allclose(ada.bgc(x, keys(8), jnp.float32(0)), x, atol=1e-5)


def test_each_happens_at_its_share():
    """Of images at p; the two turns together."""
    x, p = noise(4000, 8), jnp.float32(0.3)
    u = jax.random.uniform(jax.random.key(5), (4000, 10))
    normal = jax.random.normal(jax.random.key(1), (4000, 9))
    moved = ~np.isclose(ada.geometry(u[:, :7], normal, p), np.eye(3)).all((1, 2))
    assert abs(moved.mean() - (1 - 0.7**4)) < 0.05  # scale, turn, stretch, move
    coloured = ~np.isclose(ada.colours(u, normal, p), np.eye(3, 4)).all((1, 2))
    assert abs(coloured.mean() - (1 - 0.7**4 * 0.85)) < 0.05  # half of the lumas turned over
    blitted = (np.asarray(ada.blitted(x, u[:, :7], p)) != np.asarray(x)).any((1, 2, 3))
    # Half of the mirrorings, three quarters of the turns, all but 1 of 9 of the moves.
    share = 1 - (1 - 0.15) * (1 - 0.225) * (1 - 0.3 * 8 / 9)
    assert abs(blitted.mean() - share) < 0.05


def test_the_wavelet_undoes_itself():
    up, down, late = ada._resizers(32)
    assert abs(late) < 0.6
    np.testing.assert_allclose((down @ up)[8:-8], np.eye(32)[8:-8], atol=1e-9)
    np.testing.assert_allclose(up.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(down.sum(1), 1, atol=1e-9)


def test_a_warp_at_twice_the_resolution_is_in_place():
    """A turn by 30 degrees of a smooth image, away from its borders: of what it shows there."""
    xs = (jnp.arange(48) - 23.5)[None]
    ys = xs.T
    wave = lambda y, x: jnp.sin(0.3 * x + 0.11 * y) * jnp.cos(0.2 * y)  # noqa: E731
    angle = jnp.array([np.pi / 6])
    made = ada.resampled(wave(ys, xs)[None, :, :, None], ada._turn(angle))[0, :, :, 0]
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    expected = wave(s * xs + c * ys, c * xs - s * ys)
    inside = slice(14, -14)
    np.testing.assert_allclose(made[inside, inside], expected[inside, inside], atol=0.03)


def test_greys_stay_grey():
    grey = jnp.repeat(noise(32, channels=1), 3, -1)
    u, normal = jax.random.uniform(RNG, (32, 10)), jax.random.normal(RNG, (32, 9))
    told = ada.colours(u, normal, jnp.float32(1))
    made = ada.recoloured(grey, told)
    np.testing.assert_allclose(made, jnp.repeat(made[..., :1], 3, -1), atol=1e-4)
    np.testing.assert_allclose(made[..., :1], ada.recoloured(grey[..., :1], told), atol=1e-4)


def test_p_follows_the_signs():
    p = jnp.float32(0.5)
    up = ada.adapted(p, jnp.float32(0.9), 256, 0.6, 500.0)
    np.testing.assert_allclose(up - p, 256 / 500_000, rtol=1e-4)
    assert ada.adapted(p, jnp.float32(0.1), 256, 0.6, 500.0) < p
    assert ada.adapted(jnp.float32(0), jnp.float32(-1), 256, 0.6, 500.0) == 0
    assert ada.adapted(jnp.float32(1), jnp.float32(1), 256, 0.6, 500.0) == 1


# ---- the step ----


def make(**fields):
    networks = dict(width=4, num_classes=0, axis_name=fields.get("axis_name"))
    return GAN(
        generator=Generator(16, 1, latent_dim=8, **networks),
        discriminator=Discriminator(16, **networks),
        **dict(g_tx=optax.sgd(0.1), d_tx=optax.sgd(0.1)) | fields,
    )


def make_batch(n=16):
    return {"image": np.asarray(noise(n, channels=1)), "index": np.arange(n, dtype=np.int32)}


def test_the_discriminator_sees_them_augmented(monkeypatch):
    """And the generator learns through it: with all cut away, nothing."""
    from aigc_jax.augment import diffaugment as module

    monkeypatch.setitem(module.POLICIES, "cutout", lambda x, u: 0 * x)
    batch = make_batch()
    state = init_state(make(), RNG, batch)
    new, metrics = jax.jit(functools.partial(train_step, make(augment=("cutout",))))(
        state, batch, RNG
    )
    assert metrics["d_real"] == metrics["d_fake"] and metrics["g_grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, new.g["params"], state.g["params"])


@pytest.mark.parametrize("augment", [("color", "translation", "cutout"), ("ada",)])
def test_same_step_on_eight_devices(augment):
    ends = []
    for mode, devices in (("jit", 1), ("pmap", 8)):
        layout = parallel.layout(mode, jax.devices()[:devices])
        gan = make(augment=augment, ada=Ada(0.0, 0.1, 2), axis_name=layout.axis_name)
        state = init_state(gan, RNG, make_batch())
        if augment == ("ada",):
            state = state.replace(extras={**state.extras, "ada_p": jnp.float32(0.7)})
        state = layout.place_state(state)
        compiled = layout.compile(functools.partial(train_step, gan), state)
        for _ in range(2):
            state, metrics = compiled(state, layout.place_batch(make_batch()), RNG)
        ends.append(jax.device_get((state, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), *ends)


def test_p_is_in_the_state_and_in_the_log():
    gan = make(augment=("ada",), ada=Ada(target=-1.0, kimg=1.0, every=2))
    state, seen = init_state(gan, RNG, make_batch()), []
    compiled = jax.jit(functools.partial(train_step, gan))
    for _ in range(4):
        state, metrics = compiled(state, make_batch(), RNG)
        seen.append(float(metrics["ada_p"]))
    # Signs above -1 raise it at every second step, by 2 * 16 of 1000 images.
    np.testing.assert_allclose(seen, [0, 0.032, 0.032, 0.064], rtol=1e-5)
    assert init_state(make(), RNG, make_batch()).extras == {}


def test_from_config():
    config = configs.load("digits_dcgan")
    config.num_classes, config.channels = 10, 1
    assert method.from_config(config).augment == ()
    config.d_augment, config.ada.target = "ada", 0.5
    gan = method.from_config(config)
    assert gan.augment == ("ada",) and gan.ada == Ada(0.5, 500.0, 4)
    config.d_augment = "translation, cutout"
    assert method.from_config(config).augment == ("translation", "cutout")


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"d_augment": "adda"}, "unknown policy 'adda'"),
        ({"d_augment": "ada", "palette": ((0, 0, 0),) * 2}, "label maps have no colours"),
        ({"ada": {"target": 2.0}}, "ada.target is 2.0: it must be from -1 to 1"),
        ({"ada": {"kimg": 0.0}}, "ada.kimg must be above 0"),
    ],
)
def test_mistakes(fields, line):
    config = configs.load("digits_dcgan")
    config.num_classes, config.channels = 10, 1
    config.update(fields)
    with pytest.raises(UserError, match=line):
        method.from_config(config)


# ---- a whole training ----


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["augment=rotatee(15)"], "config.augment: unknown augmentation 'rotatee'"),
        (["augment=mixup(0.2)"], "'mixup' mixes the images of a batch"),
        (["data.augment=flipp"], "unknown augmentation 'flipp'"),
        (["data.source=shapes", "task=scene", "augment=flip"], "config.augment moves pixels"),
    ],
)
def test_what_cant_be_done_is_said_before_anything_is_written(flags, line, tmp_path):
    from aigc_jax import train

    config = configs.load("digits_dcgan:smoke")
    config = configs.override(config, [f"--config.{flag}" for flag in flags])
    with pytest.raises(UserError, match=line):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_methods_have_no_such_discriminator(tmp_path):
    from aigc_jax import train

    config = configs.load("digits_classifier:smoke")
    config.d_augment = "color"
    with pytest.raises(UserError, match=r"config\.d_augment is for the method gan: classifier has"):
        train.run(config, tmp_path / "run")
    config.d_augment, config.augment, config.batch_size = "", "mixup", 8
    with pytest.raises(UserError, match="a device's part of the batch is 1 images"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["translation", "ada"])
def test_trained_with_everything_on(name, tmp_path):
    """In the stream, in the step, and in what D sees: from a launch to samples, and on."""
    from aigc_jax import runs, sampling, train

    config = configs.load("digits_dcgan:smoke")
    config.generator.width = config.discriminator.width = 4
    config.image_size, config.eval.extractor, config.num_train_steps = 16, "", 2
    config.data.augment, config.augment, config.d_augment = "rotate(9)", "translate(0.1)", name
    config.ada.every = 1
    train.run(config, tmp_path / "run")
    config.num_train_steps = 4
    state = train.run(config, tmp_path / "run")
    assert int(state.step) == 4
    if name == "ada":
        assert 0 <= float(state.extras["ada_p"]) <= 1
    assert np.isfinite(np.float32(sampling.generate(runs.load(tmp_path / "run"), 4)[0])).all()
