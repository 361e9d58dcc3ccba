"""One step, four launchers, one result. With SGD: Adam would hide a wrong scale of gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.methods import classifier, gan
from aigc_jax.models.classifier import Classifier
from aigc_jax.models.dcgan import Discriminator, Generator

SIZE, STEPS = 16, 5
COMPILATIONS = []  # grows by one with every program that XLA compiles


@jax.monitoring.register_event_duration_secs_listener
def _listen(event, duration, **kwargs):
    if event.endswith("backend_compile_duration"):
        COMPILATIONS.append(event)


LAYOUTS = [
    pytest.param("jit", 1, id="jit-1"),
    pytest.param("pmap", 1, id="pmap-1"),
    pytest.param("pmap", 8, id="pmap-8"),
    pytest.param("jit", 8, id="jit-8"),
    pytest.param("fsdp", 8, id="fsdp-8"),
]


def batches(n, count=STEPS):
    rng = np.random.default_rng(0)
    for i in range(count):
        yield {
            "image": rng.uniform(-1, 1, (n, SIZE, SIZE, 1)).astype(np.float32),
            "label": rng.integers(0, 4, n).astype(np.int32),
            "index": np.arange(i * n, (i + 1) * n, dtype=np.int32),
        }


def make_gan(axis_name, **fields):
    networks = dict(width=8, num_classes=4, axis_name=axis_name)
    return gan, gan.GAN(
        generator=Generator(SIZE, 1, latent_dim=8, **networks),
        discriminator=Discriminator(SIZE, **networks),
        g_tx=optax.sgd(0.05),
        d_tx=optax.sgd(0.05),
        num_classes=4,
        ema_half_life=100.0,
        axis_name=axis_name,
        **fields,
    )


def make_classifier(axis_name):
    model = Classifier(4, width=8, axis_name=axis_name)
    return classifier, classifier.Classifier(model, optax.sgd(0.05), axis_name=axis_name)


MAKERS = {
    "gan": make_gan,
    "gan-2-d-steps": functools.partial(make_gan, d_steps=2),
    "gan-penalties": functools.partial(make_gan, gradient_penalty=1.0, r1=0.5, r2=0.5),
    "classifier": make_classifier,
}


def train(maker, mode, devices, n=32):
    layout = parallel.layout(mode, jax.devices()[:devices])
    method, spec = MAKERS[maker](layout.axis_name)
    state = method.init_state(spec, jax.random.key(1), next(batches(n)))
    state = layout.place_state(state)
    step, rng = layout.compile(functools.partial(method.train_step, spec), state), jax.random.key(0)
    compiled = []
    for batch in batches(n):
        state, metrics = step(state, layout.place_batch(batch), rng)
        compiled.append(len(COMPILATIONS))
    return jax.device_get(state), jax.device_get(metrics), compiled


@functools.cache
def one_device(maker):
    return train(maker, "jit", 1)[:2]


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


@pytest.mark.parametrize(("mode", "devices"), LAYOUTS[1:])
def test_same_state_on_every_layout(mode, devices):
    state, metrics, compiled = train("gan", mode, devices)
    assert_close(state, one_device("gan")[0], 1e-6)
    assert_close(metrics, one_device("gan")[1], 1e-5)
    assert state.step == STEPS and COMPILATIONS
    assert len(set(compiled)) == 1  # in the first call alone


@pytest.mark.parametrize("maker", ["gan-2-d-steps", "gan-penalties", "classifier"])
def test_same_state_under_pmap(maker):
    state, metrics, _ = train(maker, "pmap", 8)
    assert_close(state, one_device(maker)[0], 1e-5)  # rounding, through more updates
    assert_close(metrics, one_device(maker)[1], 1e-4)


def test_training_moves_every_parameter():
    """What the equalities above would not notice: a state that stays as it was."""
    method, spec = make_gan(None)
    first = method.init_state(spec, jax.random.key(1), next(batches(32)))
    last, _ = one_device("gan")
    for before, after in ((first.g, last.g), (first.d, last.d), (first.ema, last.ema)):
        moved = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0), before, after)
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_scanned_steps_equal_single_ones(mode):
    layout = parallel.layout(mode)
    method, spec = make_gan(layout.axis_name)
    state = method.init_state(spec, jax.random.key(1), next(batches(32)))
    step = functools.partial(method.train_step, spec)
    steps = layout.compile(step, state, stacked=True)
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches(32))
    batch = layout.place_batch(stacked, stacked=True)
    state, metrics = steps(layout.place_state(state), batch, jax.random.key(0))
    assert metrics["g_loss"].shape == (STEPS,)
    assert_close(jax.device_get(state), one_device("gan")[0], 1e-6)


def test_fsdp_shards_channels_and_nothing_spatial():
    layout = parallel.layout("fsdp")
    kernel = jax.ShapeDtypeStruct((8, 8, 3, 16), jnp.float32)
    narrow = jax.ShapeDtypeStruct((4, 4, 8, 3), jnp.float32)
    neither = jax.ShapeDtypeStruct((8, 8, 3, 3), jnp.float32)
    specs = [layout.state_sharding(x).spec for x in (kernel, narrow, neither)]
    assert [tuple(s) for s in specs] == [(None, None, None, "data"), (None, None, "data"), ()]


def test_keys_and_gathers_follow_the_global_position():
    rng, axis = jax.random.key(3), parallel.AXIS

    def draw(axis_name):
        keys = lambda x: parallel.example_keys(rng, len(x), axis_name)  # noqa: E731
        return lambda x: jax.vmap(jax.random.uniform)(keys(x))

    x = jnp.arange(16.0)
    one = draw(None)(x)
    many = jax.pmap(draw(axis), axis_name=axis)(x.reshape(8, 2))
    np.testing.assert_array_equal(np.asarray(many).reshape(-1), one)
    gather = lambda x: parallel.all_examples(x, axis)  # noqa: E731
    np.testing.assert_array_equal(
        np.asarray(jax.pmap(gather, axis_name=axis)(x.reshape(8, 2)))[5], x
    )
    assert parallel.all_examples(x, None) is x


def test_own_examples_undo_the_gathering():
    x, axis = jnp.arange(48.0).reshape(16, 3), parallel.AXIS

    def there_and_back(part):
        return parallel.own_examples(2 * parallel.all_examples(part, axis), axis)

    found = jax.pmap(there_and_back, axis_name=axis)(x.reshape(8, 2, 3))
    np.testing.assert_array_equal(np.asarray(found).reshape(16, 3), 2 * x)
    assert parallel.own_examples(x, None) is x


def test_interleaved_batches_come_apart():
    x, y = jnp.arange(8.0).reshape(4, 2), -jnp.arange(8.0).reshape(4, 2)
    both = parallel.interleave(x, y)
    np.testing.assert_array_equal(both[0::2], x)
    np.testing.assert_array_equal(both[1::2], y)
    apart = parallel.separate(both, 2)
    assert len(apart) == 2
    np.testing.assert_array_equal(jnp.stack(apart), jnp.stack([x, y]))


def test_parts_are_taken_one_after_another():
    """Strided; the carry goes from part to part, and what is found is averaged."""
    batch = {"x": jnp.arange(6.0), "keys": jax.random.split(jax.random.key(0), 6)}

    def function(carry, part):
        drawn = jax.vmap(jax.random.uniform)(part["keys"])
        return 10 * carry + part["x"][0], {"mean": part["x"].mean(), "drawn": drawn.mean()}

    whole = parallel.in_parts(function, jnp.float32(0), batch, 1)
    carry, found = parallel.in_parts(function, jnp.float32(0), batch, 3)
    assert carry == 12  # of the parts 0 3, 1 4 and 2 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, whole[1])
    with pytest.raises(UserError, match="6 images can't be taken in 4 parts: take"):
        parallel.in_parts(function, jnp.float32(0), batch, 4)


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"batch_size = 60 can't be divided over 8 devices.*56"):
        parallel.check_batch_size(60, parallel.layout())
