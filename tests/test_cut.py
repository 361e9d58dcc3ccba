"""CUT's and FastCUT's step against the textbook's, their layouts and measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from translation_helpers import (
    LR,
    RNG,
    SIZE,
    Toy,
    bits,
    check_paired,
    close,
    descend,
    domains,
    held_out,
    louder,
    same,
    small_config,
    step,
    trained,
)

from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError
from aigc_jax.losses import adversarial
from aigc_jax.methods import cut as method
from aigc_jax.methods.cut import CUT
from aigc_jax.models.patch_head import PatchHead, draw_places
from aigc_jax.models.patchgan import Discriminator
from aigc_jax.models.resnet_translator import Generator

SGD = optax.sgd(LR)


def make(axis_name=None, generator=None, g_tx=SGD, head_tx=SGD, d_tx=SGD, **fields):
    judge = Adversary(
        discriminator=Discriminator(width=2, num_layers=1, norm="instance", axis_name=axis_name),
        tx=d_tx,
        loss=adversarial.least_squares,
        weight=1.7,
        adaptive=False,
        axis_name=axis_name,
    )
    fields = dict(nce_weight=0.6, patches=9, ema_half_life=8.0, ema_ramp_up=0.0) | fields
    return CUT(
        generator=generator or Toy(),
        head=PatchHead(features=6),
        g_tx=g_tx,
        head_tx=head_tx,
        adversary=judge,
        axis_name=axis_name,
        **fields,
    )


PLAIN = make()
FAST = make(identity=False, flip=True, nce_weight=2.0)


@functools.cache
def first_state(cut=PLAIN):
    """With weights of a size at which every term counts."""
    state = jax.jit(functools.partial(method.init_state, cut))(RNG, domains(1))
    judge = state.adversary.replace(variables=louder(state.adversary.variables))
    g, head = louder(state.g, 1.0), louder(state.head, 10.0)
    return state.replace(g=g, head=head, ema=g, adversary=judge)


# ---- the step ----


def nce(queries, keys):
    """[positive, others] / 0.07 with the positive at 0 and -10 in its place among the others."""
    positive = (queries * keys).sum(-1, keepdims=True)
    others = jnp.einsum("bpd,bqd->bpq", queries, keys)
    others = jnp.where(jnp.eye(others.shape[1], dtype=bool)[None], -10.0, others)
    logits = jnp.concatenate([positive, others], -1) / 0.07
    return -jax.nn.log_softmax(logits)[..., 0].mean()


def by_hand(cut, state, batch, places, mirrored):
    """D first, then G and the projection through D as it now is; a pass for each image's part."""

    def mirror(x):
        return x[:, :, ::-1] if mirrored else x

    def judge(variables, x):
        return cut.adversary.discriminator.apply(variables, x, train=True)

    def encode(g, x):
        return cut.generator.apply(g, x, method="encode")

    def contrast(g, head, source):
        made = cut.generator.apply(g, mirror(source))
        queries = cut.head.apply(head, [mirror(x) for x in encode(g, made)], places)
        keys = cut.head.apply(state.head, encode(state.g, source), places)  # no gradient
        return sum(nce(q, k) for q, k in zip(queries, keys, strict=True)) / len(queries)

    a, b = batch["a"], batch["b"]
    fake = cut.generator.apply(state.g, mirror(a))

    def d_loss(variables):
        real, made = judge(variables, mirror(b)), judge(variables, fake)
        return (jnp.mean((real - 1) ** 2) + jnp.mean(made**2)) / 2

    losses = {}
    losses["d_loss"], grads = jax.value_and_grad(d_loss)(state.adversary.variables)
    d = descend(state.adversary.variables, grads)

    def loss(g, head):
        made = cut.generator.apply(g, mirror(a))
        losses = {
            "g_loss": jnp.mean((judge(d, made) - 1) ** 2) / 2,
            "nce_loss": contrast(g, head, a),
        }
        nces = losses["nce_loss"]
        if cut.identity:
            losses["identity_nce_loss"] = contrast(g, head, b)
            nces = (nces + losses["identity_nce_loss"]) / 2
        return cut.adversary.weight * losses["g_loss"] + cut.nce_weight * nces, losses

    grads, more = jax.grad(loss, (0, 1), has_aux=True)(state.g, state.head)
    new = descend((state.g, state.head), grads)
    return (*new, d), losses | more


def is_mirrored(t):
    key, _ = jax.random.split(jax.random.fold_in(RNG, t))
    return bool(jax.random.bernoulli(key))


def a_step_that(mirrors):
    return next(t for t in range(20) if is_mirrored(t) == mirrors)


@pytest.mark.parametrize(
    ("cut", "t"),
    [(PLAIN, 0), (FAST, a_step_that(True)), (FAST, a_step_that(False))],
    ids=["CUT", "FastCUT-mirrored", "FastCUT"],
)
def test_step_is_the_textbooks(cut, t):
    state, batch = first_state().replace(step=jnp.int32(t)), domains(8)
    new, metrics = step(method, cut, state, batch)
    _, key = jax.random.split(jax.random.fold_in(RNG, t))
    places = draw_places(key, [jnp.zeros((1, SIZE, SIZE, 1))] * 2, 9)  # one for all images
    hand = jax.jit(functools.partial(by_hand, cut, mirrored=cut.flip and is_mirrored(t)))
    expected, losses = hand(state, batch, places)
    close((new.g, new.head, new.adversary.variables), expected, 1e-5, 1e-4)
    close({name: metrics[name] for name in losses}, losses, 1e-5, 1e-4)
    assert ("identity_nce_loss" in metrics) == cut.identity
    assert not same(new.head, state.head) and new.step == t + 1


def test_each_update_leaves_the_others_alone():
    batch, state = domains(8), first_state()
    names = ("g", "head", "adversary")
    for still in ("g_tx", "head_tx", "d_tx"):
        new, _ = step(method, make(**{still: optax.set_to_zero()}), state, batch)
        stayed = [name for name in names if same(getattr(state, name), getattr(new, name))]
        assert stayed == [{"d_tx": "adversary"}.get(still, still[:-3])]


def cut_steps(cut):
    state = first_state()
    for t in range(2):
        state, metrics = step(method, cut, state, domains(8, seed=t))
    return state, metrics


two_steps = functools.cache(cut_steps)


@pytest.mark.parametrize(
    ("mode", "cut"), [("pmap", PLAIN), ("jit", PLAIN), ("pmap", FAST)], ids=["pmap", "jit", "fast"]
)
def test_every_layout_has_the_same_state(mode, cut):
    fields = {name: getattr(cut, name) for name in ("identity", "flip", "nce_weight")}
    batches = [domains(8, seed=t) for t in range(2)]
    state, metrics = trained(
        method, functools.partial(make, **fields), mode, 8, batches, first_state()
    )
    close(state, two_steps(cut)[0])
    close(metrics, two_steps(cut)[1], 1e-5, 1e-4)


def test_two_runs_are_the_same():
    assert bits(cut_steps(PLAIN)) == bits(two_steps(PLAIN))


def test_averages_and_colours():
    state, batch = first_state(), domains(8)
    new, metrics = step(method, PLAIN, state, batch)  # 8 images: one half-life
    close(new.ema, jax.tree.map(lambda old, x: (old + x) / 2, state.ema, new.g))
    assert method.weights(new) is new.ema and method.weights(new.replace(ema=None)) is new.g
    np.testing.assert_allclose(new.colour, batch["b"].mean((0, 1, 2)), atol=1e-6)
    assert -1 <= metrics["a2b_correlation"] <= 1


# ---- what it is used for ----


@functools.partial(jax.jit, static_argnums=0)
def translated(cut, state, images):
    return method.translate(cut, state, images)


def test_translates_other_sizes():
    """With the published generator; by the averaged weights."""
    cut = make(generator=Generator(width=2, blocks=1, resample="blur", init_gain=0.2))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3)).astype(np.float32)
    state = jax.jit(functools.partial(method.init_state, cut))(RNG, domains(1))
    state = state.replace(ema=louder(state.g))
    assert method.multiple(cut) == 4
    made = translated(cut, state, images)
    assert made.shape == images.shape and made.dtype == jnp.float32
    np.testing.assert_allclose(made, jax.jit(cut.generator.apply)(state.ema, images), atol=1e-5)
    with pytest.raises(UserError, match="CUT translates a to b alone, not 'b2a'"):
        method.translate(cut, state, images, "b2a")


def test_eval_step_is_numpys():
    state, batch = two_steps(PLAIN)[0], held_out()
    found = method.eval_step(PLAIN, state, batch, RNG)
    made = translated(PLAIN, state, batch["a"])
    constant = np.broadcast_to(np.asarray(state.colour), batch["b"].shape)
    check_paired(found, batch["b"], batch["valid"], constant, batch["a"], made)
    assert len(found) == 12
    np.testing.assert_allclose(method.sample(PLAIN, state, RNG, batch), made, atol=1e-5)
    del batch["b"]  # without the truth
    assert method.eval_step(PLAIN, state, batch, RNG) == {}


def test_preview_shows_both_domains():
    batch, (state, _) = domains(9), two_steps(PLAIN)
    grids = jax.jit(functools.partial(method.preview, PLAIN))(state, RNG, batch)
    assert set(grids) == {"a2b"} and grids["a2b"].shape == (8, 4, SIZE, SIZE, 3)
    a, b = batch["a"][:8], batch["b"][:8]
    columns = [a, translated(PLAIN, state, a), b, translated(PLAIN, state, b)]
    np.testing.assert_allclose(grids["a2b"], np.stack(columns, 1), atol=1e-5)


# ---- from a config ----


def test_from_config_is_as_published():
    cut = method.from_config(small_config(method), "data")
    published = CUT(
        generator=Generator(3, 64, 9, "blur", 0.0), head=PatchHead(256), g_tx=cut.g_tx,
        head_tx=cut.head_tx, adversary=cut.adversary, ema_half_life=10_000.0, axis_name="data",
    )  # fmt: skip
    assert cut == published and cut.nce_weight == 1 and cut.patches == 256
    assert cut.identity and not cut.flip and cut.temperature == 0.07
    judge = cut.adversary
    assert judge.discriminator == Discriminator(
        64, 3, "instance", antialias=True, init_gain=0.0, axis_name="data"
    )
    assert judge.loss is adversarial.least_squares
    assert judge.weight == 2 and not judge.adaptive and judge.axis_name == "data"
    fields = dict(nce_weight=10.0, identity=False, flip_equivariance=True)
    fast = method.from_config(small_config(method, **fields))
    assert fast.nce_weight == 10 and fast.flip and not fast.identity


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"eval__direction": "b2a"}, "CUT translates a to b alone: leave config.eval.direction"),
        ({"adversary__weight": 0.0}, "adversary.weight is 0: CUT needs its discriminator"),
        ({"generator": {"name": "pix2pix_unet", "lr": None}}, "take resnet_translator"),
        ({"generator__widht": 3}, "no field 'widht'. Did you mean 'width'"),
        ({"generator__resample": "blurr"}, "Did you mean 'blur'"),
        ({"adversary__start": 5}, "adversary.start is 5, which CUT has no use for: set it to 0"),
        ({"adversary__adaptive": True}, "adversary.adaptive is True.* set it to False"),
        ({"adversary__perceptual_weight": 1.0}, "perceptual_weight is 1.0, which CUT"),
        ({"adversary__loss": "hing"}, "Unknown loss 'hing'"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line) as error:
        cut = method.from_config(small_config(method, **fields))
        jax.eval_shape(functools.partial(method.init_state, cut), RNG, domains(1))
    assert "\n" not in str(error.value)


def test_domains_of_different_shape():
    with pytest.raises(UserError, match=r"differ in shape: a \(12, 12, 3\), b \(12, 12, 1\)"):
        method.init_state(PLAIN, RNG, domains(1) | {"b": domains(1, 1)["b"]})
