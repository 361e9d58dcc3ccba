"""The GAN's step: what it updates, by how much, and what it reports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import optim
from aigc_jax.errors import UserError
from aigc_jax.methods import gan as method
from aigc_jax.methods.gan import GAN, init_state, sample, train_step
from aigc_jax.metrics.diversity import within_class_variance
from aigc_jax.models.dcgan import Discriminator, Generator

RNG = jax.random.key(0)


def make(num_classes=0, **fields):
    networks = dict(width=4, num_classes=num_classes)
    defaults = dict(g_tx=optax.sgd(0.1), d_tx=optax.sgd(0.1), num_classes=num_classes)
    return GAN(
        generator=Generator(16, 1, latent_dim=8, **networks),
        discriminator=Discriminator(16, **networks),
        **defaults | fields,
    )


def make_batch(n=8, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, 16, 16, 1)).astype(np.float32),
        "label": (np.arange(n) % num_classes).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def step(gan, state, batch, rng=RNG):
    return jax.jit(functools.partial(train_step, gan))(state, batch, rng)


def by_hand(gan, state, batch, rng):
    """The same step as the textbook writes it: two passes of D, G run once more for its update."""
    rng = jax.random.fold_in(rng, 0)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(rng, 0)))(
        jnp.arange(len(batch["image"]))
    )
    z = jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys)
    label = batch["label"] if gan.num_classes else None

    def g_apply(params):
        v = {**state.g, "params": params}
        return gan.generator.apply(v, z, label, train=True, mutable=["batch_stats"])[0]

    def d_apply(params, x):
        v = {**state.d, "params": params}
        return gan.discriminator.apply(v, x, label, train=True, mutable=["batch_stats"])[0]

    fake = g_apply(state.g["params"])

    def d_loss(params):
        return gan.loss.discriminator(d_apply(params, batch["image"]), d_apply(params, fake))

    d = state.d["params"]
    d = jax.tree.map(lambda p, g: p - 0.1 * g, d, jax.grad(d_loss)(d))
    g = state.g["params"]
    g_grads = jax.grad(lambda g: gan.loss.generator(d_apply(d, g_apply(g))))(g)
    return jax.tree.map(lambda p, g: p - 0.1 * g, g, g_grads), d


@pytest.mark.parametrize("num_classes", [0, 4])
def test_step_is_the_textbooks(num_classes):
    gan, batch = make(num_classes), make_batch()
    state = init_state(gan, RNG, batch)
    g, d = jax.jit(lambda s, b: by_hand(gan, s, b, RNG))(state, batch)
    new, _ = step(gan, state, batch)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-4)
    jax.tree.map(close, new.g["params"], g)
    jax.tree.map(close, new.d["params"], d)


def test_each_update_leaves_the_other_network_alone():
    batch = make_batch()
    for frozen, other in (("g_tx", "d"), ("d_tx", "g")):
        gan = make(**{frozen: optax.set_to_zero()})
        state = init_state(gan, RNG, batch)
        new, _ = step(gan, state, batch)
        name = frozen[0]
        same = jax.tree.map(
            np.array_equal, getattr(state, name)["params"], getattr(new, name)["params"]
        )
        assert all(jax.tree.leaves(same))
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b),
            getattr(state, other)["params"],
            getattr(new, other)["params"],
        )
        assert all(jax.tree.leaves(moved))


def test_d_steps_take_strided_parts_of_the_batch():
    gan, batch = make(d_steps=2, g_tx=optax.set_to_zero()), make_batch(16)
    state = init_state(gan, RNG, batch)
    twice, _ = step(gan, state, batch)
    seen = []
    for k in range(2):  # the second part must be what the last update saw: poison the first
        poisoned = {**batch, "image": batch["image"].copy()}
        poisoned["image"][k::2] = 0
        seen.append(step(gan, state, poisoned)[1]["d_real"])
    assert not np.isclose(*seen)
    assert not np.allclose(
        jax.tree.leaves(twice.d["params"])[0], jax.tree.leaves(state.d["params"])[0]
    )


def test_ema_follows_parameters_and_statistics():
    gan, batch = make(ema_half_life=8.0, ema_ramp_up=0.0), make_batch()
    state = init_state(gan, RNG, batch)
    new, _ = step(gan, state, batch)  # 8 images: one half-life
    jax.tree.map(
        lambda old, x, mean: np.testing.assert_allclose(mean, (old + x) / 2, atol=1e-6),
        state.g,
        new.g,
        new.ema,
    )
    assert "batch_stats" in new.ema


def test_ema_ramp_up_follows_at_first():
    average = optim.ema(jnp.zeros(()), jnp.ones(()), jnp.zeros(()), 8, 1000.0, 0.05)
    np.testing.assert_allclose(average, 1.0, atol=1e-6)
    late = optim.ema(jnp.zeros(()), jnp.ones(()), jnp.float32(1e6), 1000, 1000.0, 0.05)
    np.testing.assert_allclose(late, 0.5, atol=1e-6)


def test_sample_depends_on_the_index_alone():
    gan, batch = make(4), make_batch()
    state = init_state(gan, RNG, batch)
    draw = functools.partial(sample, gan, state, RNG)
    label = jnp.full(4, 2, jnp.int32)
    images = draw({"index": jnp.arange(4), "label": label})
    again = draw({"index": jnp.array([3, 1]), "label": label[:2]})
    np.testing.assert_allclose(again, images[jnp.array([3, 1])], atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 1e-6
    unlabelled = draw({"index": jnp.arange(4)})
    assert unlabelled.shape == (4, 16, 16, 1)


def test_truncation_bounds_latents():
    batch = {"index": jnp.arange(100)}
    z = method.latents(make(), RNG, batch, 0.5)
    assert 0.45 < np.abs(z).max() <= 0.5
    assert np.abs(method.latents(make(), RNG, batch)).max() > 2


def test_preview_has_a_row_a_class():
    gan, batch = make(4), make_batch()
    state = init_state(gan, RNG, batch)
    grid = method.preview(gan, state, RNG, batch)["samples"]
    assert grid.shape == (4, 8, 16, 16, 1)
    label = jnp.full(8, 3, jnp.int32)
    row = sample(gan, state, RNG, {"index": jnp.arange(24, 32), "label": label})
    np.testing.assert_allclose(grid[3], row, atol=1e-6)


def test_within_class_variance():
    rng = np.random.default_rng(0)
    label = np.array([0, 0, 0, 1, 1, 1], np.int32)
    classes = rng.normal(size=(2, 4, 4, 1)).astype(np.float32)[label]
    assert within_class_variance(classes, label, 2) < 1e-6  # one picture for each label
    assert within_class_variance(classes, None, 0) > 0.1
    noise = rng.normal(size=(6, 4, 4, 1)).astype(np.float32)
    within = [((noise[label == k] - noise[label == k].mean(0)) ** 2).sum() for k in (0, 1)]
    value = within_class_variance(classes + noise, label, 2)
    np.testing.assert_allclose(value, sum(within) / noise.size, rtol=1e-4)


def test_diagnose():
    healthy = dict(diversity=0.9, d_accuracy=0.8, g_grad_norm=1.0, d_grad_norm=1.0)
    assert method.diagnose(1000, healthy) is None
    assert method.diagnose(50, healthy | {"diversity": 0.01}) is None
    assert "collapse" in method.diagnose(1000, healthy | {"diversity": 0.01})
    assert "learning rate" in method.diagnose(1000, healthy | {"d_accuracy": 1.0})
    assert "gradient" in method.diagnose(1000, healthy | {"g_grad_norm": 1e5})


def test_a_generator_that_collapses_is_told():
    """Diversity of the real metric, on a generator that ignores its latent."""

    class Constant(Generator):
        def __call__(self, z, label=None, *, train):
            return super().__call__(jnp.ones_like(z), label, train=train)

    gan = make(4)
    import dataclasses

    stuck = dataclasses.replace(
        gan, generator=Constant(16, 1, latent_dim=8, width=4, num_classes=4)
    )
    batch = make_batch(16)
    state = init_state(stuck, RNG, batch)
    _, metrics = step(stuck, state, batch)
    assert metrics["diversity"] < 1e-3
    assert "collapse" in method.diagnose(1000, {k: float(v) for k, v in metrics.items()})


@pytest.mark.parametrize("num_classes", [0, 4])
def test_samples_are_decoded_latents(num_classes):
    """Of the averaged weights, which `weights` hands out; each settled by rng and index alone."""
    gan, batch = make(num_classes, ema_half_life=8.0), make_batch()
    state, _ = step(gan, init_state(gan, RNG, batch), batch)
    z = method.latents(gan, RNG, batch)
    images = sample(gan, state, RNG, batch)
    np.testing.assert_array_equal(method.decode(gan, state, z, batch), images)
    label = batch["label"] if num_classes else None
    by_hand = gan.generator.apply(state.ema, z, label, train=False)
    np.testing.assert_array_equal(by_hand, images)
    assert method.weights(state) is state.ema and method.weights(state.replace(ema=None)) is state.g
    one = {name: x[5:6] for name, x in batch.items()}
    np.testing.assert_array_equal(method.latents(gan, RNG, one), z[5:6])
    assert np.abs(method.latents(gan, RNG, batch, 0.5)).max() <= 0.5 < np.abs(z).max()


def small_config(**fields):
    config = configs.default()
    config.update(
        generator=ConfigDict({"name": "dcgan", "width": 4, "latent_dim": 8}),
        discriminator=ConfigDict({"name": "dcgan", "width": 4}),
        loss="hinge",
        gradient_penalty=0.0,
        r1=0.0,
        r2=0.0,
        channels=1,
        num_classes=0,
    )
    config.update(fields)
    return config


def test_from_config():
    gan = method.from_config(small_config(d_steps=3), "data")
    assert gan.d_steps == 3 and gan.axis_name == "data"
    assert gan.generator.axis_name == "data" and gan.generator.width == 4
    assert gan.discriminator.image_size == 32


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"loss": "hing"}, "Unknown loss 'hing'. Did you mean 'hinge'"),
        ({"generator": {"name": "dcgann"}}, "Unknown model 'dcgann'. Did you mean 'dcgan'"),
        ({"generator": {"name": "dcgan", "widht": 3}}, "no field 'widht'. Did you mean 'width'"),
        ({"generator": {"name": "classifier"}}, "has no Generator"),
    ],
)
def test_from_config_names_what_is_wrong(fields, line):
    config = small_config()
    for name, value in fields.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=line):
        method.from_config(config)
