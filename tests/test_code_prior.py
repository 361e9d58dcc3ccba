"""The code prior: its step, what it learns, what it draws, and what it asks of its autoencoder."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.layers import codebook
from aigc_jax.methods import code_prior as method
from aigc_jax.methods.code_prior import CodePrior, eval_step, init_state, sample, train_step
from aigc_jax.models.code_transformer import Transformer
from aigc_jax.models.vqvae import Autoencoder

RNG = jax.random.key(0)
K, CLASSES, SIZE = 6, 4, 8


class Encoder(nn.Module):
    """4x4 patches, each linearly to 3 numbers: quicker to compile than convolutions."""

    @nn.compact
    def __call__(self, x, *, train):
        patches = x.reshape(-1, SIZE // 4, 4, SIZE // 4, 4).swapaxes(2, 3)
        return nn.Dense(3)(patches.reshape(*patches.shape[:3], 16))


class Decoder(nn.Module):
    """And back."""

    @nn.compact
    def __call__(self, z, *, train):
        patches = nn.Dense(16)(z).reshape(*z.shape[:3], 4, 4).swapaxes(2, 3)
        return patches.reshape(-1, SIZE, SIZE, 1)


def make(num_classes=CLASSES, dropout=0.0, **fields):
    """A prior of 2x2 codes of 8x8 images."""
    model = Transformer(
        K, (2, 2), width=8, depth=1, heads=2, num_classes=num_classes, dropout=dropout
    )
    autoencoder = Autoencoder(Encoder(), Decoder())
    fields = dict(tx=optax.sgd(0.1), num_classes=num_classes) | fields
    return CodePrior(model=model, autoencoder=autoencoder, **fields)


@functools.cache
@jax.jit
def make_frozen():
    """An autoencoder's weights, the codebook of its own vectors, so that all codes are in use."""
    autoencoder, images = make().autoencoder, make_batch(K)["image"]
    z, encoder = autoencoder.encoder.init_with_output(RNG, images, train=False)
    book = codebook.init(RNG, K, z.shape[-1]).replace(embeddings=z[:, 0, 0])
    decoder = autoencoder.decoder.init(RNG, z, train=False)
    return {"autoencoder": {"encoder": encoder, "decoder": decoder, "codebook": book}}


def make_batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, SIZE, SIZE, 1)).astype(np.float32),
        "label": (np.arange(n) % CLASSES).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def start(prior):
    init = jax.jit(functools.partial(init_state, prior))
    return init(jax.random.key(1), make_batch(1), make_frozen())


def step(prior, state, batch):
    return jax.jit(functools.partial(train_step, prior))(state, batch, RNG)


@functools.partial(jax.jit, static_argnums=0)
def nats(prior, params, codes, label):
    """-log p of every code, by the definition."""
    logits = prior.model.apply({"params": params}, codes, label, train=False)
    log_p = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
    return -(log_p * jax.nn.one_hot(codes.reshape(len(codes), -1), K)).sum(-1)


# ---- the step ----


@pytest.mark.parametrize("num_classes", [0, CLASSES])
def test_step_descends_the_cross_entropy(num_classes):
    prior, batch = make(num_classes, ema_half_life=16.0, ema_ramp_up=0.0), make_batch()
    state = start(prior)
    codes = prior.autoencoder.to_codes(state.frozen["autoencoder"], batch["image"])
    assert codes.shape == (16, 2, 2) and len(np.unique(codes)) > 2
    label = batch["label"] if num_classes else None
    loss_fn = lambda params: nats(prior, params, codes, label).mean()  # noqa: E731
    params = state.variables["params"]
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    new, metrics = step(prior, state, batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, new.variables["params"], expected)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_code"], np.log2(np.exp(loss)), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert new.step == 1 and method.weights(new) is new.ema
    # The batch is one half-life.
    jax.tree.map(close, new.ema["params"], jax.tree.map(lambda a, b: (a + b) / 2, params, expected))
    jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)


def test_same_step_on_eight_devices():
    """With every random part on."""
    batches = [make_batch(32, seed) for seed in (1, 2)]
    ends = []
    for mode, devices in (("jit", 1), ("pmap", 8)):
        layout = parallel.layout(mode, jax.devices()[:devices])
        prior = make(
            dropout=0.3, condition_dropout=0.4, ema_half_life=99.0, axis_name=layout.axis_name
        )
        state = layout.place_state(start(prior))
        compiled = layout.compile(functools.partial(train_step, prior), state)
        for batch in batches:
            state, metrics = compiled(state, layout.place_batch(batch), RNG)
        ends.append(jax.device_get((state, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), *ends)


def test_conditions_are_left_out_at_their_share():
    keys = jax.random.split(RNG, 2000)
    label = jnp.arange(2000) % CLASSES
    left = method._left_out(make(condition_dropout=0.3), label, keys)
    out = left == CLASSES
    assert abs(out.mean() - 0.3) < 0.04
    np.testing.assert_array_equal(left[~out], label[~out])
    assert method._left_out(make(), label, keys) is label


# ---- what it learns ----


@pytest.fixture(scope="module")
def trained():
    """A prior of one picture a label: (prior, state, their codes, them decoded, losses)."""
    prior = make(tx=optax.adam(2e-2), condition_dropout=0.2, ema_half_life=64.0)
    state = start(prior)
    pictures = make_batch(CLASSES, seed=7)
    batch = {name: np.concatenate([x] * 8) for name, x in pictures.items()}
    compiled = jax.jit(functools.partial(train_step, prior))
    losses = []
    for _ in range(150):
        state, metrics = compiled(state, batch, RNG)
        losses.append(float(metrics["loss"]))
    codes = prior.autoencoder.to_codes(state.frozen["autoencoder"], pictures["image"])
    decoded = prior.autoencoder.to_images(state.frozen["autoencoder"], codes)
    return prior, state, codes, decoded, losses


def test_learning_happens(trained):
    prior, state, codes, _, losses = trained
    assert abs(losses[0] - math.log(K)) < 0.2
    # With the label nothing is left to learn; without, which of the pictures it is.
    assert np.mean(losses[-20:]) < 0.2 * math.log(CLASSES)
    assert len({np.asarray(c).tobytes() for c in codes}) == CLASSES
    params = method.weights(state)["params"]
    assert nats(prior, params, codes, np.arange(CLASSES)).sum(-1).max() < 0.1
    free = nats(prior, params, codes, np.full(CLASSES, CLASSES)).sum(-1)
    assert math.log(CLASSES) - 1e-3 < free.mean() < 1.3 * math.log(CLASSES)


def test_samples_are_the_pictures_of_their_labels(trained):
    knobs = {"temperature": 0.5, "guidance": 1.0}
    prior, state, _, decoded, _ = trained
    label = np.arange(24, dtype=np.int32) % CLASSES
    batch = {"index": np.arange(24, dtype=np.int32), "label": label}
    images = jax.jit(functools.partial(sample, prior, **knobs))(state, RNG, batch)
    assert images.shape == (24, SIZE, SIZE, 1)
    right = np.abs(images - decoded[label]).max((1, 2, 3)) < 1e-5
    assert right.mean() > 0.9


def test_labels_are_drawn_evenly_where_none_are_given(trained):
    prior, state, _, decoded, _ = trained
    batch = {"index": np.arange(400, dtype=np.int32)}
    images = jax.jit(functools.partial(sample, prior, top_k=1))(state, RNG, batch)
    gaps = np.abs(images[:, None] - decoded[None]).max((2, 3, 4))
    counts = np.bincount(gaps.argmin(1), minlength=CLASSES)
    assert gaps.min(1).max() < 1e-5 and counts.min() > 70


def test_preview_has_a_row_a_class(trained):
    prior, state, _, decoded, _ = trained
    grid = jax.jit(functools.partial(method.preview, prior))(state, RNG, make_batch(8))["samples"]
    assert grid.shape == (CLASSES, 8, SIZE, SIZE, 1)
    right = np.abs(grid - decoded[:, None]).max((2, 3, 4)) < 1e-5
    assert right.mean() > 0.9


def test_sample_depends_on_the_index_alone():
    prior = make()
    draw, label = jax.jit(functools.partial(sample, prior)), np.full(6, 2, np.int32)
    images = draw(start(prior), RNG, {"index": np.arange(6, dtype=np.int32), "label": label})
    some = np.array([4, 1, 7, 8, 9, 10], np.int32)
    again = draw(start(prior), RNG, {"index": some, "label": label})
    np.testing.assert_allclose(again[:2], images[some[:2]], atol=1e-6)
    assert np.abs(images).max() <= 1 and np.abs(images[0] - images[1]).max() > 1e-3


def test_unconditional_preview():
    prior = make(num_classes=0)
    grid = jax.jit(functools.partial(method.preview, prior))(start(prior), RNG, make_batch(8))[
        "samples"
    ]
    assert grid.shape == (8, 8, SIZE, SIZE, 1)


@pytest.mark.parametrize(
    ("fields", "knobs", "line"),
    [
        ({}, {"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({}, {"top_k": 7}, "top_k is 7: it must be from 1 to the codebook's 6 codes"),
        ({}, {"top_k": -1}, "top_k is -1"),
        ({}, {"guidance": 1.0}, "trained with every condition.*conditioning.dropout=0.1"),
        ({"num_classes": 0}, {"guidance": 1.0}, "unconditional"),
    ],
)
def test_knobs_out_of_range(fields, knobs, line):
    prior = make(**fields)
    with pytest.raises(UserError, match=line):
        sample(prior, None, RNG, {"index": np.arange(2)}, **knobs)


# ---- evaluation ----


def evaluate(prior, state, valid):
    """Codes, labels, and what `eval_step` finds of the examples that are valid."""
    batch = make_batch(16, seed=5)
    codes = prior.autoencoder.to_codes(state.frozen["autoencoder"], batch["image"])
    batch["valid"] = valid.astype(np.float32)
    return codes, batch["label"], jax.jit(functools.partial(eval_step, prior))(state, batch, RNG)


def test_scores_of_a_uniform_prior():
    """log K nats a code: 4 codes for 64 numbers."""
    prior = make(ema_half_life=10.0)
    state = start(prior)
    params = state.ema["params"]
    params = params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
    codes, _, found = evaluate(prior, state.replace(ema={"params": params}), np.ones(16))
    value = {name: float(total / count) for name, (total, count) in found.items()}
    np.testing.assert_allclose(value["nats_per_code"], math.log(K), rtol=1e-5)
    np.testing.assert_allclose(value["code_bits_per_dim"], 4 * math.log2(K) / 64, rtol=1e-5)
    np.testing.assert_allclose(value["accuracy"], (codes == 0).mean(), rtol=1e-5)


def test_evaluation_counts_valid_examples_alone(trained):
    prior, state, *_ = trained
    codes, label, found = evaluate(prior, state, np.arange(16) < 5)
    total, count = found["nats_per_code"]
    expected = nats(prior, state.ema["params"], codes, label).mean(-1)[:5].sum()
    assert count == 5
    np.testing.assert_allclose(total, expected, rtol=1e-4)


# ---- the config ----


@pytest.fixture
def workdir(tmp_path):
    """What `from_config` reads of a VQ-VAE's run."""
    config = configs.default()
    config.update(method="vqvae", image_size=16, channels=3, num_classes=0)
    config.encoder = ConfigDict({"name": "vqvae", "width": 4, "halvings": 2, "embedding_dim": 3})
    config.decoder = ConfigDict({"name": "vqvae", "width": 4, "halvings": 2})
    config.codebook = ConfigDict({"size": 5})
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    return tmp_path


def make_config(workdir, **fields):
    config = configs.load("cifar10_code_prior")
    config.frozen.autoencoder = str(workdir)
    config.update(dict(image_size=16, channels=3, num_classes=10) | fields)
    return config


def test_from_config(workdir):
    prior = method.from_config(make_config(workdir, conditioning={"dropout": 0.25}), "data")
    assert (prior.model.num_codes, prior.model.grid, prior.model.num_classes) == (5, (4, 4), 10)
    assert prior.axis_name == "data" and prior.condition_dropout == 0.25
    assert prior.autoencoder.encoder.width == 4 and prior.autoencoder.decoder.channels == 3
    assert dataclasses.asdict(prior)  # every field is set


def test_a_prior_without_an_autoencoder():
    config = configs.load("cifar10_code_prior")
    with pytest.raises(UserError, match=r"--config\.frozen\.autoencoder=runs/cifar10_vqvae"):
        method.from_config(config)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"image_size": 32}, "image_size is 32, .*16: set --config.image_size=16"),
        ({"channels": 1}, "channels is 1, .* is 3: set --config.channels=3"),
        (
            {"conditioning": {"dropout": 1.0}},
            "conditioning.dropout is 1.0: it must be at least 0 and below 1",
        ),
        ({"model": {"name": "code_transformer", "dropout": -0.1}}, "model.dropout is -0.1"),
        ({"model": {"name": "code_transformer", "hedas": 3}}, "'hedas'. Did you mean 'heads'"),
    ],
)
def test_from_config_names_what_is_wrong(workdir, fields, line):
    config = make_config(workdir)
    for name, value in fields.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=line):
        method.from_config(config)


def test_a_run_that_has_no_codes(tmp_path):
    (tmp_path / "config.json").write_text(configs.load("digits_dcgan").to_json_best_effort())
    with pytest.raises(UserError, match="a run of the method 'gan', which has no codes"):
        method.from_config(make_config(tmp_path))
