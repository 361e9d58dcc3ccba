"""pix2pix's step against the textbook's, as a regression, with kept luma; layouts, measures."""

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
from aigc_jax.layers.colour import luma
from aigc_jax.losses import adversarial
from aigc_jax.methods import pix2pix as method
from aigc_jax.methods.pix2pix import Pix2Pix
from aigc_jax.models.patchgan import Discriminator
from aigc_jax.models.pix2pix_unet import Generator

SGD = optax.sgd(LR)
UNET = dict(width=2, levels=2)


def make(axis_name=None, generator=None, weight=0.7, g_tx=SGD, d_tx=SGD, **fields):
    judge = Adversary(
        discriminator=Discriminator(width=2, num_layers=1, axis_name=axis_name),
        tx=d_tx,
        loss=adversarial.non_saturating,
        weight=weight,
        adaptive=False,
        axis_name=axis_name,
    )
    fields = dict(l1_weight=3.0, ema_half_life=8.0, ema_ramp_up=0.0) | fields
    return Pix2Pix(
        generator=generator or Generator(**UNET, axis_name=axis_name),
        g_tx=g_tx,
        adversary=judge if weight else None,
        axis_name=axis_name,
        **fields,
    )


PLAIN = make()


@functools.cache
def first_state(spec=PLAIN):
    """With weights of a size at which every term counts."""
    state = jax.jit(functools.partial(method.init_state, spec))(RNG, domains(1))
    params = louder(state.g["params"], 3.0)
    judge = state.adversary
    if judge is not None:
        loud = {**judge.variables, "params": louder(judge.variables["params"])}
        judge = judge.replace(variables=loud)
    g = {**state.g, "params": params}
    return state.replace(g=g, ema=g, adversary=judge)


# ---- the step ----


def by_hand(spec, state, batch):
    """D by two passes, then G through D as it now is; each pass normalises by its own batch."""
    a, b = batch["a"], batch["b"]

    def g_apply(params):
        variables = {**state.g, "params": params}
        made, _ = spec.generator.apply(variables, a, train=True, mutable=["batch_stats"])
        return made + luma(a) - luma(made) if spec.keep_luma else made

    def judge(params, x):
        variables = {**state.adversary.variables, "params": params}
        pair = jnp.concatenate([a, x], -1)
        network = spec.adversary.discriminator
        return network.apply(variables, pair, train=True, mutable=["batch_stats"])[0]

    fake = g_apply(state.g["params"])

    def d_loss(params):
        return spec.adversary.loss.discriminator(judge(params, b), judge(params, fake))

    d = state.adversary.variables["params"]
    losses = {}
    losses["d_loss"], grads = jax.value_and_grad(d_loss)(d)
    d = descend(d, grads)

    def g_loss(params):
        made = g_apply(params)
        losses = {
            "g_loss": spec.adversary.loss.generator(judge(d, made)),
            "l1_loss": jnp.mean(jnp.abs(made - b)),
        }
        loss = spec.adversary.weight * losses["g_loss"] + spec.l1_weight * losses["l1_loss"]
        return loss, losses

    grads, more = jax.grad(g_loss, has_aux=True)(state.g["params"])
    return descend(state.g["params"], grads), d, losses | more


KEPT = make(generator=Toy(), keep_luma=True, weight=1.5, l1_weight=20.0)


@pytest.mark.parametrize("spec", [PLAIN, KEPT], ids=["unet", "keep-luma"])
def test_step_is_the_textbooks(spec):
    """A U-Net of 2 levels has no dropout."""
    state, batch = first_state(spec), domains(8)
    new, metrics = step(method, spec, state, batch)
    g, d, losses = jax.jit(functools.partial(by_hand, spec))(state, batch)
    close((new.g["params"], new.adversary.variables["params"]), (g, d), 1e-5, 1e-4)
    close({name: metrics[name] for name in losses}, losses, 1e-5, 1e-4)
    assert not same(new.g["params"], state.g["params"])


def test_without_an_adversary_it_is_a_regression():
    spec, batch = make(generator=Toy(), weight=0.0), domains(8)
    state = first_state(spec)
    new, metrics = step(method, spec, state, batch)

    def loss(g):
        return 3.0 * jnp.mean(jnp.abs(spec.generator.apply(g, batch["a"]) - batch["b"]))

    value, grads = jax.jit(jax.value_and_grad(loss))(state.g)
    close(new.g, descend(state.g, grads))
    assert new.adversary is None and set(metrics) == {"l1_loss", "g_grad_norm"}
    np.testing.assert_allclose(metrics["l1_loss"], value / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["g_grad_norm"], optax.tree.norm(grads), rtol=1e-4)


def test_each_update_leaves_the_other_alone():
    batch, still = domains(8), optax.set_to_zero()
    for name in "gd":
        spec = make(generator=Toy(), **{f"{name}_tx": still})
        state = first_state(spec)
        new, _ = step(method, spec, state, batch)
        d = [s.adversary.variables["params"] for s in (state, new)]
        assert same(state.g, new.g) == (name == "g") and same(*d) == (name == "d")


def test_training_drops_out_by_the_step_and_translation_does_not():
    """The mask is of the example's place and the step."""
    spec = make(generator=Generator(width=2, levels=6, norm="instance"), weight=0.0)
    batch = domains(2, size=64)
    state = jax.jit(functools.partial(method.init_state, spec))(RNG, batch)
    state = state.replace(g=louder(state.g, 8.0))
    a, b = (step(method, spec, state.replace(step=jnp.int32(k)), batch)[1] for k in (0, 1))
    assert float(a["l1_loss"]) != float(b["l1_loss"])
    again = step(method, spec, state, batch)[1]
    assert float(again["l1_loss"]) == float(a["l1_loss"])
    assert same(*[translated(spec, state, batch["a"]) for _ in range(2)])


@functools.cache
def two_steps():
    state = first_state()
    for t in range(2):
        state, metrics = step(method, PLAIN, state, domains(8, seed=t))
    return state, metrics


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_every_layout_has_the_same_state(mode):
    """Statistics of batch norm, of both networks, are of the whole batch."""
    batches = [domains(8, seed=t) for t in range(2)]
    state, metrics = trained(method, make, mode, 8, batches, first_state())
    close(state, two_steps()[0])
    close(metrics, two_steps()[1], 1e-5, 1e-4)


def test_two_runs_are_the_same():
    assert bits(two_steps.__wrapped__()) == bits(two_steps())


def test_averages_and_colours():
    state, batch = first_state(), domains(8)
    new, _ = step(method, PLAIN, state, batch)  # 8 images: one half-life
    close(new.ema, jax.tree.map(lambda old, x: (old + x) / 2, state.ema, new.g))
    assert method.weights(new) is new.ema and method.weights(new.replace(ema=None)) is new.g
    both = np.concatenate([domains(8, seed=t)["b"] for t in (0, 1)])
    np.testing.assert_allclose(two_steps()[0].colour, both.mean((0, 1, 2)), atol=1e-6)


# ---- what it is used for ----


@functools.partial(jax.jit, static_argnums=0)
def translated(spec, state, images):
    return method.translate(spec, state, images)


@pytest.mark.parametrize("shape", [(4, 12), (20, 36)])
def test_translates_other_sizes(shape):
    """By the averaged weights and statistics: an image's translation isn't its batch's affair."""
    images = np.random.default_rng(0).uniform(-1, 1, (3, *shape, 3)).astype(np.float32)
    state = two_steps()[0]
    assert method.multiple(PLAIN) == 4
    made = translated(PLAIN, state, images)
    assert made.shape == images.shape and made.dtype == jnp.float32
    np.testing.assert_allclose(made, PLAIN.generator.apply(state.ema, images), atol=1e-5)
    np.testing.assert_allclose(translated(PLAIN, state, images[:1]), made[:1], atol=1e-5)
    with pytest.raises(UserError, match="a to b alone, not 'b2a'"):
        method.translate(PLAIN, state, images, "b2a")


def test_luma_is_kept_exactly():
    """As far as there is such a colour; else clipping takes the rest."""
    spec, grey = make(generator=Toy(), keep_luma=True), domains(4)["a"].mean(-1, keepdims=True)
    grey = np.repeat(0.3 * grey, 3, -1)
    state = first_state(spec)
    gentle = state.replace(ema=jax.tree.map(lambda x: 0.1 * x, state.g))
    made = np.asarray(translated(spec, gentle, grey), np.float64)
    assert np.abs(made).max() < 1
    np.testing.assert_allclose(made @ [0.299, 0.587, 0.114], grey[..., 0], atol=1e-6)
    assert np.abs(made - grey).max() > 1e-3  # there is colour
    free = spec.generator.apply(gentle.ema, grey)
    np.testing.assert_allclose(made[..., 0] - made[..., 1], free[..., 0] - free[..., 1], atol=1e-6)
    assert np.abs(translated(spec, state, 3 * grey)).max() == 1


def test_eval_step_is_numpys():
    state, batch = two_steps()[0], held_out()
    found = method.eval_step(PLAIN, state, batch, RNG)
    made = translated(PLAIN, state, batch["a"])
    constant = np.broadcast_to(np.asarray(state.colour), batch["b"].shape)
    check_paired(found, batch["b"], batch["valid"], constant, batch["a"], made)
    assert len(found) == 12
    np.testing.assert_allclose(method.sample(PLAIN, state, RNG, batch), made, atol=1e-5)


def test_preview_is_source_translation_truth():
    batch, (state, _) = domains(9), two_steps()
    grids = jax.jit(functools.partial(method.preview, PLAIN))(state, RNG, batch)
    a, b = batch["a"][:8], batch["b"][:8]
    assert set(grids) == {"a2b"} and grids["a2b"].shape == (8, 3, SIZE, SIZE, 3)
    expected = np.stack([a, translated(PLAIN, state, a), b], 1)
    np.testing.assert_allclose(grids["a2b"], expected, atol=1e-5)


# ---- from a config ----


def test_from_config_is_as_published():
    config = small_config(method, image_size=256)
    spec = method.from_config(config, "data")
    assert spec == Pix2Pix(
        generator=Generator(3, 64, image_size=256, axis_name="data"),
        g_tx=spec.g_tx,
        adversary=spec.adversary,
        ema_half_life=10_000.0,
        axis_name="data",
    )
    judge = spec.adversary
    assert judge.discriminator == Discriminator(64, 3, "batch", axis_name="data")
    assert judge.loss is adversarial.non_saturating
    assert judge.weight == 1 and not judge.adaptive and judge.axis_name == "data"
    batch = {k: jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32) for k in "ab"}
    state = jax.eval_shape(functools.partial(method.init_state, spec), RNG, batch)
    sizes = [state.g["params"], state.adversary.variables["params"]]
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in sizes]
    assert sizes == [54_413_955, 2_768_705]


def test_a_weight_of_0_leaves_no_adversary():
    config = small_config(method, adversary__weight=0.0, image_size=16)
    assert method.from_config(config).adversary is None


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"eval__direction": "b2a"}, "pix2pix translates a to b alone: leave config.eval.direct"),
        ({"keep_luma": True, "channels": 1}, "keep_luma is for colour images: set config.channels"),
        ({"generator__name": "pix2pix_unett"}, "Did you mean 'pix2pix_unet'"),
        ({"generator__widht": 3}, "no field 'widht'. Did you mean 'width'"),
        ({"adversary__loss": "hing"}, "Unknown loss 'hing'"),
        ({"adversary__discriminator__norm": "bach"}, "no norm 'bach'"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line) as error:
        spec = method.from_config(small_config(method, **dict(image_size=16) | fields))
        batch = domains(1, size=64)
        jax.eval_shape(functools.partial(method.init_state, spec), RNG, batch)
    assert "\n" not in str(error.value)
