"""The adversary's gradient and update, against their formulas written out and plain jax.grad."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from aigc_jax import adversary as module
from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.adversary import Adversary, State, from_config, init, sharpen, update
from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv
from aigc_jax.losses import adversarial
from aigc_jax.losses.perceptual import perceptual_distance
from aigc_jax.models.classifier import Classifier, stages
from aigc_jax.models.patchgan import Discriminator

RNG = jax.random.key(0)
SIZE = 12
CLASSIFIER = Classifier(num_classes=3, width=2)
PATCHGAN = Discriminator(width=4, num_layers=1)
SGD = optax.sgd(0.1)


def images(n=8, channels=3):
    """Real images, reconstructions, and the gradient of a mean squared error."""
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (n, SIZE, SIZE, channels)).astype(np.float32)
    fake = (0.7 * real + 0.2 * rng.normal(size=real.shape)).astype(np.float32)
    return real, fake, 2 * (fake - real) / real.size


def make(**fields):
    defaults = dict(discriminator=PATCHGAN, tx=SGD, weight=0.5)
    return Adversary(**defaults | fields)


@functools.cache
def perceptual_variables():
    variables = CLASSIFIER.init(RNG, jnp.zeros((1, SIZE, SIZE, 3)), train=False)
    # Statistics unlike those of a fresh network: that they are used must show.
    return jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables)


def see(variables, x):
    return stages(CLASSIFIER, variables, x)


def frozen():
    return {"perceptual": perceptual_variables()}


@functools.cache
def compiled(function, adversary):
    return jax.jit(functools.partial(function, adversary))


def first_state(adversary):
    return compiled(init, adversary)(RNG, images()[0])


def run_sharpen(adversary, state, step=0):
    return compiled(sharpen, adversary)(state, frozen(), *images(), jnp.int32(step))


def run_update(adversary, state, step=0):
    return compiled(update, adversary)(state, *images()[:2], jnp.int32(step))


@jax.jit
def logits_of(state, x):
    return PATCHGAN.apply(state.variables, x, train=True, mutable=["batch_stats"])[0]


def close(actual, expected, rtol=1e-4, atol=1e-7):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, actual, expected)


class Linear(nn.Module):
    """Logit = <w, image>: its gradient is known."""

    slope: float = 2.0

    @nn.compact
    def __call__(self, x, label=None, *, train, groups=1):
        w = self.param("w", nn.initializers.constant(self.slope), x.shape[1:])
        return jnp.sum(x * w[None], (1, 2, 3))


class Scale(nn.Module):
    """Features: the image, times a frozen factor that unit length takes out."""

    @nn.compact
    def __call__(self, x):
        return [x * self.param("factor", nn.initializers.constant(3.0), ())]


def test_the_adaptive_weight_by_hand():
    real, fake, gradient = images(4)
    network, factor = Scale(), {"params": {"factor": jnp.float32(3.0)}}
    adversary = make(discriminator=Linear(), features=network.apply, perceptual_weight=0.3)
    state = init(adversary, RNG, real)
    new, metrics = compiled(sharpen, adversary)(
        state, {"perceptual": factor}, real, fake, gradient, jnp.int32(0)
    )
    # d/dx of |u(x) - u(y)|^2 = 2 - 2 <u(x), u(y)> is -2 (u(y) - <u(x), u(y)> u(x)) / |x|.
    x, y, g = (np.asarray(a, np.float64) for a in (fake, real, gradient))
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    u, v = x / length, y / np.linalg.norm(y, axis=-1, keepdims=True)
    cosine = (u * v).sum(-1, keepdims=True)
    perceptual = -2 * (v - cosine * u) / length / (4 * SIZE * SIZE)
    g = g + 0.3 * perceptual
    adversarial_gradient = np.full(x.shape, -2.0 / 4)  # hinge: -mean over four images of <w, x>
    ratio = np.linalg.norm(g) / (np.linalg.norm(adversarial_gradient) + 1e-4)
    close(metrics["adaptive_weight"], ratio)
    close(metrics["perceptual"], (2 - 2 * cosine).mean())
    close(metrics["g_loss"], -2.0 * x.sum((1, 2, 3)).mean())
    close(new, g + 0.5 * ratio * adversarial_gradient, atol=1e-6)


def test_the_adversarial_gradient_is_the_discriminators():
    adversary, (_, fake, gradient) = make(), images()
    state = first_state(adversary)
    new, metrics = run_sharpen(adversary, state)
    expected = jax.grad(lambda x: -logits_of(state, x).mean())(fake)
    ratio = np.linalg.norm(gradient) / (np.linalg.norm(expected) + 1e-4)
    close(metrics["adaptive_weight"], ratio)
    close(new - gradient, 0.5 * ratio * expected, 1e-3, 1e-7)
    assert set(metrics) == {"g_loss", "adaptive_weight"}


def test_the_adaptive_weight_is_bounded():
    adversary = make(discriminator=Linear(slope=0.0))
    real, fake, gradient = images()
    state = init(adversary, RNG, real)
    new, metrics = sharpen(adversary, state, {}, real, fake, 1e6 * gradient, jnp.int32(0))
    assert metrics["adaptive_weight"] == 1e4
    close(new, 1e6 * gradient)


def test_the_perceptual_gradient_is_that_of_the_loss():
    adversary = make(discriminator=None, features=see, perceptual_weight=2.0)
    real, fake, gradient = images()
    new, metrics = run_sharpen(adversary, None)

    def loss(x):
        of_x, of_real = see(perceptual_variables(), x), see(perceptual_variables(), real)
        return 2.0 * perceptual_distance(of_x, of_real).mean()

    value, expected = jax.jit(jax.value_and_grad(loss))(fake)
    close(new - gradient, expected, 1e-3, 1e-3 * np.abs(expected).max())
    close(2 * metrics["perceptual"], value)
    assert set(metrics) == {"perceptual"}
    assert np.abs(expected).max() > 1e-5


@pytest.mark.parametrize("step", [0, 9, 10, 11])
def test_nothing_adversarial_before_the_start(step):
    adversary, gradient = make(start=10), images()[2]
    state = first_state(adversary)
    new, metrics = run_sharpen(adversary, state, step)
    after, d_metrics = run_update(adversary, state, step)
    if step < 10:
        close(new, gradient, 0, 0)
        close(after, state, 0, 0)
        assert not any(jax.tree.leaves((metrics, d_metrics)))
    else:
        at_once = make()
        close((new, metrics), run_sharpen(at_once, state))
        close((after, d_metrics), run_update(at_once, state))
        assert metrics["adaptive_weight"] > 0
        assert d_metrics["d_grad_norm"] > 0


def test_an_update_is_the_textbooks():
    """Two passes of D, one for each of real and fake, and a step down the hinge loss."""
    adversary, (real, fake, _) = make(), images()
    state = first_state(adversary)

    def loss(params):
        at = State({**state.variables, "params": params}, None)
        real_logits, fake_logits = logits_of(at, real), logits_of(at, fake)
        value = nn.relu(1 - real_logits).mean() + nn.relu(1 + fake_logits).mean()
        return value, (real_logits, fake_logits)

    params = state.variables["params"]
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    new, metrics = run_update(adversary, state)
    close(new.variables["params"], jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), 1e-4)
    expected = {
        "d_loss": value,
        "d_real": logits[0].mean(),
        "d_fake": logits[1].mean(),
        "d_accuracy": (logits[0] > logits[1]).mean(),
        "d_grad_norm": optax.tree.norm(grads),
    }
    close(metrics, expected, 1e-4, 1e-6)
    assert set(new.variables) == {"params", "batch_stats"}
    stats = [new.variables["batch_stats"], state.variables["batch_stats"]]
    assert not np.allclose(*[s["BatchNorm_0"]["var"] for s in stats])


def test_updates_separate_real_from_fake():
    adversary = make(tx=optax.adam(1e-2))
    state = first_state(adversary)
    _, before = run_update(adversary, state)
    for step in range(30):
        state, metrics = run_update(adversary, state, step)
    assert before["d_loss"] > 1.9 and before["d_accuracy"] < 0.8
    assert metrics["d_loss"] < 0.5 and metrics["d_accuracy"] > 0.9
    assert metrics["d_real"] > 0.5 and metrics["d_fake"] < -0.5


# ---- layouts of devices ----


class Toy(nn.Module):
    """A network that reconstructs."""

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(Conv(x.shape[-1])(x))


def train_step(adversary, state, batch, rng):
    """What a method's step does with its adversary."""
    real = batch["image"]
    fake, pullback = jax.vjp(lambda params: Toy().apply(params, real), state["params"])
    gradient = jax.grad(lambda x: jnp.mean((x - real) ** 2))(fake)
    gradient, metrics = sharpen(
        adversary, state["adversary"], frozen(), real, fake, gradient, state["step"]
    )
    (grads,) = pullback(gradient)
    if adversary.axis_name:
        grads = jax.lax.pmean(grads, adversary.axis_name)
    params = jax.tree.map(lambda p, g: p - 0.5 * g, state["params"], grads)
    new, d_metrics = update(adversary, state["adversary"], real, fake, state["step"])
    return (
        {"params": params, "adversary": new, "step": state["step"] + 1},
        metrics | d_metrics,
    )


def run_steps(mode, devices, steps=3):
    layout = parallel.layout(mode, jax.devices()[:devices])
    discriminator = dataclasses.replace(PATCHGAN, axis_name=layout.axis_name)
    adversary = make(
        discriminator=discriminator, features=see, start=1, axis_name=layout.axis_name, weight=0.1
    )
    real = images(16)[0]
    state = {
        "params": Toy().init(RNG, real[:1]),
        "adversary": compiled(init, adversary)(RNG, real),
        "step": jnp.zeros((), jnp.int32),
    }
    state = layout.place_state(state)
    step = layout.compile(functools.partial(train_step, adversary), state)
    history = []
    for _ in range(steps):
        batch = layout.place_batch({"image": real})
        state, metrics = step(state, batch, RNG)
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


@functools.cache
def on_one_device():
    return run_steps("jit", 1)


@pytest.mark.parametrize(("mode", "devices"), [("pmap", 8), ("jit", 8)])
def test_layouts_agree(mode, devices):
    state, history = run_steps(mode, devices)
    close(state, on_one_device()[0], 1e-5, 1e-6)
    close(history, on_one_device()[1], 1e-4, 1e-6)
    assert history[0]["adaptive_weight"] == 0 < history[1]["adaptive_weight"]


# ---- from a config ----


@pytest.fixture
def classifier_run(tmp_path):
    config = configs.default()
    config.method, config.image_size, config.channels = "classifier", SIZE, 3
    config.num_classes = 3
    config.model = ConfigDict({"name": "classifier", "width": 2})
    config.label_smoothing = 0.0
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    return tmp_path


def make_config(**fields):
    config = configs.default()
    config.image_size, config.channels = SIZE, 3
    config.adversary = module.defaults()
    config.adversary.update(fields)
    config.frozen = {"perceptual": placeholder(str)}
    return config


def test_both_terms_off_is_none():
    assert from_config(make_config()) is None
    assert from_config(configs.default()) is None  # no such section
    assert init(None, RNG, images()[0]) is None


def test_from_config(classifier_run):
    config = make_config(weight=0.8, perceptual_weight=1.0, start=7, loss="least_squares")
    config.frozen.perceptual = str(classifier_run)
    adversary = from_config(config, "data")
    assert adversary.discriminator == Discriminator(64, 2, "batch", axis_name="data")
    assert (adversary.weight, adversary.perceptual_weight, adversary.start) == (0.8, 1.0, 7)
    assert adversary.loss is adversarial.least_squares and adversary.axis_name == "data"
    real = images()[0]
    close(adversary.features(perceptual_variables(), real), see(perceptual_variables(), real))


def test_each_term_alone(classifier_run):
    config = make_config(perceptual_weight=1.0)
    config.frozen.perceptual = str(classifier_run)
    alone = from_config(config)
    assert alone.discriminator is None and init(alone, RNG, images()[0]) is None
    assert update(alone, None, *images()[:2], jnp.int32(0)) == (None, {})
    assert from_config(make_config(weight=0.8)).features is None


def test_the_discriminators_optimizer():
    config = make_config(weight=1.0, lr=0.5, start=6)
    config.num_train_steps = 10
    config.optimizer.schedule = "linear"
    tx = from_config(config).tx
    params = {"w": jnp.zeros(3)}
    opt, lengths = tx.init(params), []
    for _ in range(5):
        updates, opt = tx.update({"w": jnp.ones(3)}, opt, params)
        lengths.append(-updates["w"][0])
    # Adam's steps on a constant gradient are lr long: it decays over the four steps that are left.
    close(lengths, [0.5, 0.375, 0.25, 0.125, 0.0], 1e-4, 1e-6)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"discriminator": {"name": "patchgam"}}, "Unknown model 'patchgam'. Did you mean 'patchg"),
        ({"discriminator": {"name": "classifier"}}, "'classifier' has no Discriminator"),
        ({"discriminator": {"widht": 3}}, "no field 'widht'. Did you mean 'width'"),
        ({"loss": "hing"}, "Unknown loss 'hing'. Did you mean 'hinge'"),
        ({"perceptual_weight": 1.0}, "set config.frozen.perceptual to the workdir of a classifier"),
    ],
)
def test_from_config_names_what_is_wrong(fields, line):
    config = make_config(weight=0.8)
    with config.unlocked():
        config.adversary.update(fields)
    with pytest.raises(UserError, match=line) as error:
        from_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("image_size", 32, "reads images with image_size 32, not 12: train one"),
        ("channels", 1, "reads images with channels 1, not 3: train one"),
        ("method", "gan", "is a run of the method 'gan': name the workdir of a classifier's"),
    ],
)
def test_a_perceptual_network_that_does_not_fit(classifier_run, field, value, line):
    path = classifier_run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    config = make_config(perceptual_weight=1.0)
    config.frozen.perceptual = str(classifier_run)
    with pytest.raises(UserError, match=line):
        from_config(config)


def test_a_perceptual_network_that_is_not_there(tmp_path):
    config = make_config(perceptual_weight=1.0)
    config.frozen.perceptual = str(tmp_path)
    with pytest.raises(UserError, match="is not a run's workdir"):
        from_config(config)


# ---- the discriminator sees more, the weight is plain, no reconstruction ----


def conditions(n=8):
    return np.random.default_rng(5).uniform(-1, 1, (n, SIZE, SIZE, 2)).astype(np.float32)


def test_a_condition_is_seen_beside_each_image():
    """As if images of more channels were judged, of which the first are given."""
    adversary, (real, fake, gradient) = make(adaptive=False), images()
    given = conditions()
    both = [np.concatenate([given, x], -1) for x in (real, fake)]
    state = init(adversary, RNG, real, condition=given)
    close(state.variables, init(adversary, RNG, both[0]).variables)
    assert state.variables["params"]["Conv_0"]["kernel"].shape[2] == 5
    step = jnp.int32(0)
    update_, sharpen_ = (compiled(f, adversary) for f in (update, sharpen))
    close(update_(state, real, fake, step, given), update_(state, *both, step))
    new, metrics = sharpen_(state, {}, real, fake, gradient, step, given)
    wider = np.concatenate([np.zeros_like(given), gradient], -1)
    expected, more = sharpen_(state, {}, *both, wider, step)
    close((new, metrics), (expected[..., 2:], more))
    assert np.abs(new - gradient).max() > 1e-6


def test_a_plain_weight_multiplies_the_adversarial_gradient():
    adversary, (_, fake, gradient) = make(adaptive=False, weight=0.7), images()
    state = first_state(adversary)
    new, metrics = run_sharpen(adversary, state)
    expected = jax.grad(lambda x: -logits_of(state, x).mean())(fake)
    close(new - gradient, 0.7 * expected, 1e-3, 1e-7)
    assert set(metrics) == {"g_loss"}


def test_generator_loss_is_of_the_logits():
    adversary, fake = make(loss=adversarial.least_squares), images()[1]
    state = first_state(adversary)
    found = compiled(module.generator_loss, adversary)(state, fake)
    close(found, ((logits_of(state, fake) - 1) ** 2).mean() / 2)
    close(found, run_sharpen(adversary, state)[1]["g_loss"])
