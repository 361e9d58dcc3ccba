"""A GAN that is taught to match texts or labels: against losses written out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text, for_each
from aigc_jax.losses.contrastive import matching
from aigc_jax.methods import _gan_matching, gan
from aigc_jax.models import dcgan, fusion_gan
from aigc_jax.models.condition_encoder import ConditionEncoder
from aigc_jax.parallel import interleave

RNG = jax.random.key(0)
CLASSES, WORDS, LENGTH = 3, 12, 5
ENCODER = dict(num_classes=CLASSES, vocabulary=WORDS, width=8, depth=0)
PALETTE = ((40, 40, 40), (255, 0, 0), (0, 0, 255))


class Draws(nn.Module):
    """A generator of 4x4 images that is quick to compile."""

    latent_dim: int = 6
    guidance: float = 0.0

    @nn.compact
    def __call__(self, z, condition=None, *, train):
        encoded = ConditionEncoder(**ENCODER)(condition, self.guidance)
        x = nn.Dense(48)(jnp.concatenate([z, encoded.vector], -1))
        return jnp.tanh(x.reshape(-1, 4, 4, 3))


class Judges(nn.Module):
    """Its discriminator, which sows what fusion_gan's does."""

    tells: bool = True

    @nn.compact
    def __call__(self, x, condition=None, *, train, groups=1):
        vector = ConditionEncoder(**ENCODER)(condition).vector
        x = jnp.tanh(nn.Dense(8)(x.reshape(len(x), -1)))
        if self.tells and isinstance(condition, Text):
            for name, y in (("image", x), ("text", nn.Dense(8)(vector))):
                self.sow("auxiliary", name, y / jnp.linalg.norm(y, axis=-1, keepdims=True))
        elif self.tells:
            self.sow("auxiliary", "logits", nn.Dense(CLASSES)(x))
        x, vector = for_each(x, vector, groups)
        x = jnp.tanh(nn.Dense(8)(jnp.concatenate([x, vector], -1)))
        return nn.Dense(1)(x).reshape(-1)


def make(tells=True, **fields):
    defaults = dict(g_tx=optax.sgd(0.1), d_tx=optax.sgd(0.1))
    return gan.GAN(generator=Draws(), discriminator=Judges(tells), **defaults | fields)


def make_fusion(axis_name=None, **fields):
    """With a generator of the shipped config, which takes the statistics of the whole batch."""
    network = dict(image_size=8, width=4, vocabulary=WORDS, text_width=8, text_depth=0)
    generator = fusion_gan.Generator(**network, latent_dim=6, norm="batch", axis_name=axis_name)
    return dataclasses.replace(make(axis_name=axis_name, **fields), generator=generator)


def texts(n, seed):
    rng = np.random.default_rng(seed)
    tokens = np.zeros((n, LENGTH), np.int32)
    for row, words in zip(tokens, rng.integers(1, LENGTH - 1, n), strict=True):
        row[: words + 2] = [2, *rng.integers(4, WORDS, words), 3]
    return tokens


def make_batch(n=8, kind="texts", seed=0, size=4):
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.uniform(-1, 1, (n, size, size, 3)).astype(np.float32),
        "index": np.arange(n, dtype=np.int32),
    }
    if kind == "labels":
        return batch | {"label": rng.integers(0, CLASSES, n).astype(np.int32)}
    if kind == "sentences":
        return batch | {"text_embedding": rng.normal(size=(n, 7)).astype(np.float32)}
    told, wrong = texts(n, seed), texts(n, seed + 100)
    batch |= {"text": told, "text_mask": told != 0}
    if kind == "texts":
        batch |= {"wrong_text": wrong, "wrong_text_mask": wrong != 0}
    return batch


@functools.cache
def compiled(static):
    return jax.jit(functools.partial(gan.train_step, static))


def started(static, batch):
    """A first state whose every parameter is away from its first value."""
    state = jax.eval_shape(functools.partial(gan.init_state, static), RNG, batch)

    def drawn(shapes, scale):
        leaves, tree = jax.tree.flatten(shapes)
        rng = np.random.default_rng(0)
        draw = lambda x: scale * rng.normal(size=x.shape).astype(x.dtype)  # noqa: E731
        return jax.tree.unflatten(tree, [draw(x) for x in leaves])

    def variables(shapes):
        stats = {"mean": np.zeros, "var": np.ones}
        fill = lambda path, x: stats[path[-1].key](x.shape, x.dtype)  # noqa: E731
        rest = {
            k: jax.tree_util.tree_map_with_path(fill, x) for k, x in shapes.items() if k != "params"
        }
        return {**rest, "params": drawn(shapes["params"], 0.2)}

    return state.replace(
        step=jnp.zeros((), jnp.int32), g=variables(state.g), d=variables(state.d),
        g_opt=static.g_tx.init(state.g["params"]), d_opt=static.d_tx.init(state.d["params"]),
    )  # fmt: skip


def close(a, b, atol=1e-5, rtol=1e-4):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol), a, b)


# ---- what an image is told ----


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_wrong_captions_are_the_batchs_own_where_it_has_them():
    batch = make_batch()
    told = _gan_matching.told(make(mismatch=0.5), batch, slice(1, None, 2), keys(4))
    np.testing.assert_array_equal(told.right.tokens, batch["text"][1::2])
    np.testing.assert_array_equal(told.wrong.tokens, batch["wrong_text"][1::2])
    np.testing.assert_array_equal(told.wrong.mask, batch["wrong_text"][1::2] != 0)
    assert told.keep.all()


@pytest.mark.parametrize("kind", ["rolled", "sentences"])
def test_wrong_captions_are_else_those_of_the_example_before(kind):
    """Whatever is not told of the right ones."""
    batch = make_batch(kind=kind)
    told = _gan_matching.told(make(mismatch=0.5, dropout=0.5), batch, slice(None), keys(8))
    part, field = ("sentence", "text_embedding") if kind == "sentences" else ("tokens", "text")
    np.testing.assert_array_equal(getattr(told.wrong, part), np.roll(batch[field], 1, 0))
    assert 0 < told.keep.sum() < 8


def test_wrong_labels_are_every_other_one_alike():
    label = np.tile(np.arange(CLASSES, dtype=np.int32), 1000)
    batch, static = {"label": label}, make(num_classes=CLASSES, mismatch=0.5)
    told = _gan_matching.told(static, batch, slice(None), keys(len(label)))
    np.testing.assert_array_equal(told.right, label)
    away = (np.asarray(told.wrong) - label) % CLASSES
    often = np.bincount(away, minlength=CLASSES) / len(label)
    np.testing.assert_allclose(often, [0, 0.5, 0.5], atol=0.03)


def test_dropout_leaves_a_share_out():
    label = np.tile(np.arange(CLASSES, dtype=np.int32), 1000)
    static = make(num_classes=CLASSES, dropout=0.2)
    told = _gan_matching.told(static, {"label": label}, slice(None), keys(len(label)))
    np.testing.assert_allclose(told.keep.mean(), 0.8, atol=0.03)
    np.testing.assert_array_equal(told.right, np.where(told.keep, label, CLASSES))
    assert told.wrong is None


# ---- the losses ----


def test_matching_is_the_cross_entropy():
    """By loops in float64; a text that nobody is told of counts among the others."""
    rng = np.random.default_rng(0)

    def unit(n):
        x = rng.normal(size=(n, 6))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    images, told, weights = unit(5), unit(7), np.array([2, 0, 1, 1, 1.0])
    expected = 0.0
    for i in range(5):
        logits = np.array([images[i] @ told[j] for j in range(7)]) / 0.3
        expected += weights[i] * -np.log(np.exp(logits[i]) / np.exp(logits).sum()) / 5
    found = matching(*(jnp.asarray(x, jnp.float32) for x in (images, told[:5], told, weights)), 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def by_hand(static, state, batch, rng):
    """Both networks after one step, from passes of one kind of image and condition each."""
    n = len(batch["image"])
    rng = jax.random.fold_in(jax.random.fold_in(rng, 0), 0)
    of_examples = [jax.random.fold_in(rng, i) for i in range(n)]
    z = jnp.stack([jax.random.normal(key, (6,)) for key in of_examples])
    drop = [jax.random.fold_in(key, 2) for key in of_examples]
    keep = jnp.stack([jax.random.bernoulli(key, 1 - static.dropout) for key in drop])
    if "label" in batch:
        right = jnp.where(keep, batch["label"], CLASSES)
        swap = [jax.random.fold_in(key, 3) for key in of_examples]
        other = [jax.random.randint(key, (), 1, CLASSES) for key in swap]
        wrong = (batch["label"] + jnp.stack(other)) % CLASSES
    else:
        empty = jnp.array([[2, 3, 0, 0, 0]])
        tokens = jnp.where(keep[:, None], batch["text"], empty)
        right = Text(tokens, tokens != 0)
        wrong = Text(batch["wrong_text"], batch["wrong_text_mask"])

    def draw(g):
        return static.generator.apply({"params": g}, z, right, train=True)

    def judge(d, x, condition):
        apply = static.discriminator.apply
        logits, sown = apply({"params": d}, x, condition, train=True, mutable=["auxiliary"])
        return logits, sown["auxiliary"]

    def telling(told, among):
        """Of those that are told anything."""
        if "label" in batch:
            chances = jax.nn.log_softmax(told["logits"][0])
            loss = -jnp.take_along_axis(chances, batch["label"][:, None], 1)[:, 0]
        else:
            image = told["image"][0]
            chances = jax.nn.log_softmax(image @ jnp.concatenate(among).T / 0.1)
            loss = -jnp.diagonal(chances[:, :n])
        return jnp.sum(keep * loss) / keep.sum()

    d, g, m, softplus = state.d["params"], state.g["params"], static.mismatch, jax.nn.softplus
    fake = draw(g)

    def d_loss(d):
        real, told = judge(d, batch["image"], right)
        mismatched, of_wrong = judge(d, batch["image"], wrong)
        generated, _ = judge(d, fake, right)
        loss = softplus(-real).mean() + (1 - m) * softplus(generated).mean()
        loss = loss + m * softplus(mismatched).mean()
        among = [] if "label" in batch else [told["text"][0], of_wrong["text"][0]]
        slope = jax.grad(lambda x: judge(d, x, right)[0].sum())(batch["image"])
        r1 = jnp.sum(slope**2) / n / 2
        return (
            loss + static.auxiliary * telling(told, among) + static.penalty_every * static.r1 * r1
        )

    d = jax.tree.map(lambda p, grad: p - 0.1 * grad, d, jax.grad(d_loss)(d))

    def g_loss(g):
        logits, told = judge(d, draw(g), right)
        among = [] if "label" in batch else [told["text"][0]]
        return softplus(-logits).mean() + static.auxiliary * telling(told, among)

    return jax.tree.map(lambda p, grad: p - 0.1 * grad, g, jax.grad(g_loss)(g)), d


TAUGHT = dict(mismatch=0.3, auxiliary=0.7, dropout=0.3, r1=0.5, penalty_every=2)


@pytest.mark.parametrize("kind", ["texts", "labels"])
def test_step_is_the_papers(kind):
    """Reed et al. 2016, algorithm 1; Odena et al. 2017; Zhang et al. 2021; Karras et al. 2020."""
    static, batch = make(num_classes=CLASSES * (kind == "labels"), **TAUGHT), make_batch(kind=kind)
    state = started(static, batch)
    g, d = jax.jit(lambda s, b: by_hand(static, s, b, RNG))(state, batch)
    new, metrics = compiled(static)(state, batch, RNG)
    close(new.g["params"], g)
    close(new.d["params"], d)
    assert metrics["r1"] > 0 and "auxiliary" not in new.d
    assert {"d_auxiliary", "g_auxiliary", "d_mismatch_accuracy"} <= metrics.keys()
    # The next step pays no penalty.
    again, metrics = compiled(static)(new, batch, RNG)
    assert metrics["r1"] == 0 and again.step == 2


def metrics_of(static, batch):
    """What a step tells, by shapes alone; the state must keep its own."""
    state = jax.eval_shape(functools.partial(gan.init_state, static), RNG, batch)
    new, metrics = jax.eval_shape(functools.partial(gan.train_step, static), state, batch, RNG)
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, state)
    return set(metrics)


def test_a_frozen_encoders_sentences_have_no_tokens():
    assert "g_auxiliary" in metrics_of(make(**TAUGHT), make_batch(kind="sentences"))


def test_what_is_off_is_not_there():
    told = {"d_auxiliary", "g_auxiliary", "d_mismatch_accuracy", "r1"}
    assert not told & metrics_of(make(), make_batch())
    assert told <= metrics_of(make(**TAUGHT), make_batch())


# ---- one result on any layout ----

SPREAD = {
    "texts": functools.partial(make_fusion, **TAUGHT),
    "rolled": functools.partial(make, d_steps=2, mismatch=0.5, auxiliary=1.0),
}


def trained(kind, mode, devices):
    """The state and metrics after two steps on 16 images each (of D)."""
    layout = parallel.layout(mode, jax.devices()[:devices])
    alone, size = SPREAD[kind](), 8 if kind == "texts" else 4
    batches = [make_batch(16 * alone.d_steps, kind, seed, size) for seed in (0, 1)]
    state = started(alone, batches[0])
    step = functools.partial(gan.train_step, SPREAD[kind](axis_name=layout.axis_name))
    run = layout.compile(step, state)
    state = layout.place_state(state)
    for batch in batches:
        state, metrics = run(state, layout.place_batch(batch), RNG)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize("kind", SPREAD)
def test_same_state_under_pmap(kind):
    """With SGD, 8 devices against one: Adam would hide a wrong scale of gradients."""
    one, eight = trained(kind, "jit", 1), trained(kind, "pmap", 8)
    close(eight[0], one[0], atol=1e-6, rtol=1e-5)
    close(eight[1], one[1], atol=1e-5)


# ---- samples, grids ----


@functools.cache
def sampler(static, **knobs):
    return jax.jit(functools.partial(gan.sample, static, **knobs))


def drawn(static, state, batch, **knobs):
    return np.asarray(sampler(static, **knobs)(state, RNG, batch))


def test_guidance_of_samples():
    static, batch = make(dropout=0.1), make_batch(4)
    state = started(static, batch)
    draw = functools.partial(drawn, static, state)
    other = batch | {name: x[::-1] for name, x in batch.items() if name.startswith("text")}
    as_is = draw(batch)
    np.testing.assert_array_equal(draw(batch, guidance=0.0), as_is)
    assert np.abs(draw(batch, guidance=2.0) - as_is).max() > 1e-3
    assert np.abs(draw(other) - as_is).max() > 1e-3
    untold = [draw(x, guidance=-1.0) for x in (batch, other)]
    np.testing.assert_allclose(*untold, atol=1e-5)
    with pytest.raises(UserError, match=r"train with config\.conditioning\.dropout"):
        drawn(make(), state, batch, guidance=1.0)  # it never saw an image of no caption


def test_preview_has_a_row_a_text_behind_its_image():
    static, batch = make(), make_batch(4)
    state = started(static, batch)
    grid = jax.jit(functools.partial(gan.preview, static))(state, RNG, batch)["samples"]
    assert grid.shape == (4, 9, 4, 4, 3)
    np.testing.assert_array_equal(grid[:, 0], batch["image"])
    told = {name: np.repeat(batch[name][2:3], 8, 0) for name in ("text", "text_mask")}
    row = drawn(static, state, {"index": np.arange(16, 24), **told})
    np.testing.assert_allclose(grid[2, 1:], row, atol=1e-5)


# ---- label maps ----


@pytest.fixture(scope="module")
def maps():
    """A GAN of maps of three labels, its state and a batch."""
    static = make(palette=PALETTE, mismatch=0.5)
    segments = np.random.default_rng(0).integers(0, 3, (8, 4, 4)).astype(np.int32)
    batch = make_batch() | {"segments": segments}
    return static, started(static, batch), batch


def test_real_maps_have_a_channel_a_label(maps):
    static, _, batch = maps
    real = gan._real(static, batch, slice(2, 4))
    assert real.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(real.argmax(-1), batch["segments"][2:4])
    np.testing.assert_array_equal(np.sort(real, -1), np.broadcast_to([-1, -1, 1], real.shape))


def test_step_sees_the_maps_and_not_the_images(maps):
    static, state, batch = maps
    new, metrics = compiled(static)(state, batch, RNG)
    assert np.isfinite(metrics["d_loss"])
    other, _ = compiled(static)(state, batch | {"image": -batch["image"]}, RNG)
    jax.tree.map(np.testing.assert_array_equal, new, other)
    other, _ = compiled(static)(state, batch | {"segments": batch["segments"][::-1]}, RNG)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.d["params"], other.d["params"])
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_samples_of_maps_are_in_the_palettes_colours(maps):
    static, state, batch = maps
    images = drawn(static, state, batch)
    levels = np.round((images + 1) * 127.5).astype(int)
    np.testing.assert_allclose(levels / 127.5 - 1, images, atol=1e-6)
    assert {tuple(pixel) for pixel in levels.reshape(-1, 3)} <= set(PALETTE)
    z = gan.latents(static, RNG, batch)
    right = Text(batch["text"], batch["text_mask"])

    @jax.jit
    def by_hand(state, z):
        maps = static.generator.apply(state.g, z, right, train=False)
        return maps.argmax(-1), gan.decode(static, state, z, batch)

    labels, decoded = by_hand(state, z)
    np.testing.assert_array_equal(np.array(PALETTE)[np.asarray(labels)], levels)
    np.testing.assert_array_equal(decoded, images)
    with pytest.raises(UserError, match="label maps can't judge pictures"):
        gan.realism(static, state, images, batch)


# ---- dcgan, which knows labels alone ----


def test_dcgan_keeps_the_statistics_of_each_condition_apart():
    """Batch norm as in four passes: real and fake images, right and wrong labels."""
    net = dcgan.Discriminator(16, width=4, num_classes=CLASSES)
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(6, 16, 16, 3)).astype(np.float32) + i for i in (0, 3))
    right = np.array([0, 1, 2, 0, 1, 2], np.int32)
    wrong = (right + 1) % CLASSES
    variables = jax.jit(functools.partial(net.init, train=False))(RNG, real, right)

    def passes(variables, real, fake):
        one = functools.partial(net.apply, variables, train=True, mutable=["batch_stats"])
        together, stats = one(interleave(real, fake), interleave(right, wrong), groups=2)
        alone = [one(x, label) for x in (real, fake) for label in (right, wrong)]
        mean = jax.tree.map(lambda *x: sum(x) / 4, *(stats for _, stats in alone))
        return together.reshape(6, 4), jnp.stack([x for x, _ in alone], 1), stats, mean

    together, alone, stats, mean = jax.jit(passes)(variables, real, fake)
    close(together, alone)
    close(stats, mean)


def test_dcgan_learns_of_wrong_labels():
    fields = dict(width=4, num_classes=CLASSES)
    static = gan.GAN(
        generator=dcgan.Generator(16, latent_dim=6, **fields),
        discriminator=dcgan.Discriminator(16, **fields),
        g_tx=optax.sgd(0.1), d_tx=optax.sgd(0.1), num_classes=CLASSES, mismatch=0.5, dropout=0.2,
    )  # fmt: skip
    image = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    batch = make_batch(kind="labels") | {"image": image}
    assert "d_mismatch_accuracy" in metrics_of(static, batch)
    state = jax.eval_shape(functools.partial(gan.init_state, static), RNG, batch)
    with pytest.raises(UserError, match="--guidance: the network 'dcgan' has none"):
        jax.eval_shape(functools.partial(gan.sample, static, guidance=1.0), state, RNG, batch)


# ---- mistakes ----


@pytest.mark.parametrize("kind", ["texts", "labels"])
def test_auxiliary_without_a_discriminator_that_tells(kind):
    static = make(tells=False, num_classes=CLASSES * (kind == "labels"), auxiliary=0.5)
    init = functools.partial(gan.init_state, static)
    with pytest.raises(UserError, match=r"add auxiliary to config\.discriminator\.condition"):
        jax.eval_shape(init, RNG, make_batch(kind=kind))


def test_one_class_has_no_wrong_label():
    static, batch = make(num_classes=1, mismatch=0.5), make_batch(kind="labels")
    with pytest.raises(UserError, match="Of one class there is no wrong label"):
        jax.eval_shape(functools.partial(gan.init_state, static), RNG, batch)


@pytest.mark.parametrize(
    ("field", "value"), [("mismatch", 1.5), ("auxiliary", -1.0), ("dropout", float("nan"))]
)
def test_conditioning_out_of_range(field, value):
    config = configs.load("shapes_text_gan")
    config.conditioning[field] = value
    with pytest.raises(UserError, match=rf"config\.conditioning\.{field} is {value}"):
        configs.validate(config)


def test_from_config():
    config = configs.load("shapes_text_gan")
    config.channels, config.num_classes, config.vocabulary = 3, 0, 52
    config.palette = PALETTE
    static = gan.from_config(config, "data")
    for field in ("mismatch", "auxiliary", "dropout"):
        assert getattr(static, field) == config.conditioning[field]
    assert static.penalty_every == config.get("penalty_every", 1)
    assert static.palette == PALETTE and static.generator.channels == len(PALETTE)
    assert static.generator.vocabulary == static.discriminator.vocabulary == 52
