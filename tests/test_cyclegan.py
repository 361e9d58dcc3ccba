"""CycleGAN's step against the textbook's, its layouts, its measures, and whether it learns."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_image_pool import PlainPool, draws
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
    l164,
    louder,
    masked,
    same,
    small_config,
    step,
    trained,
)

from aigc_jax import runs, train
from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError
from aigc_jax.losses import adversarial
from aigc_jax.methods import cyclegan as method
from aigc_jax.methods.cyclegan import CycleGAN
from aigc_jax.models.patchgan import Discriminator
from aigc_jax.models.resnet_translator import Generator

WEIGHTS = dict(cycle_weights=(3.0, 7.0), identity_weight=4.0)
SGD = optax.sgd(LR)


def make(axis_name=None, generator=None, weight=1.7, g_tx=SGD, d_tx=SGD, **fields):
    judge = Adversary(
        discriminator=Discriminator(width=2, num_layers=1, norm="instance", axis_name=axis_name),
        tx=d_tx,
        loss=adversarial.least_squares,
        weight=weight,
        adaptive=False,
        axis_name=axis_name,
    )
    fields = dict(pool_size=0, ema_half_life=8.0, ema_ramp_up=0.0) | WEIGHTS | fields
    return CycleGAN(
        generator=generator or Toy(), g_tx=g_tx, adversary=judge, axis_name=axis_name, **fields
    )


POOLED = make(pool_size=12)


def loud(state):
    """With weights of a size at which every term counts."""
    d = {k: x.replace(variables=louder(x.variables)) for k, x in state.d.items()}
    g = louder(state.g, 1.0)
    return state.replace(g=g, d=d, ema=g)


@functools.cache
def first_state(gan):
    return loud(jax.jit(functools.partial(method.init_state, gan))(RNG, domains(1)))


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, images):
    return module.apply(variables, images, train=False)


# ---- the step ----


def by_hand(gan, state, batch, seen):
    """New generators and discriminators, and the losses: a pass for each term."""
    a, b = batch["a"], batch["b"]

    def judge(domain, variables, x):
        return gan.adversary.discriminator.apply(variables, x, train=True)

    def g_loss(g):
        to_b, to_a = (functools.partial(gan.generator.apply, g[k]) for k in ("a2b", "b2a"))
        fake_b, fake_a = to_b(a), to_a(b)
        fooled = jnp.mean((judge("b", state.d["b"].variables, fake_b) - 1) ** 2) / 2
        fooled += jnp.mean((judge("a", state.d["a"].variables, fake_a) - 1) ** 2) / 2
        there_and_back = jnp.mean(jnp.abs(to_a(fake_b) - a)), jnp.mean(jnp.abs(to_b(fake_a) - b))
        identity = jnp.mean(jnp.abs(to_b(b) - b)) + jnp.mean(jnp.abs(to_a(a) - a))
        loss = gan.adversary.weight * fooled + gan.identity_weight * identity
        loss += sum(w * x for w, x in zip(gan.cycle_weights, there_and_back, strict=True))
        cycle = sum(there_and_back)
        return loss, {"g_loss": fooled, "cycle_loss": cycle, "identity_loss": identity}

    grads, losses = jax.grad(g_loss, has_aux=True)(state.g)
    d = {}
    for domain in "ab":

        def d_loss(variables, domain=domain):
            real = judge(domain, variables, batch[domain])
            fake = judge(domain, variables, seen[domain])
            return (jnp.mean((real - 1) ** 2) + jnp.mean(fake**2)) / 2

        variables = state.d[domain].variables
        losses[f"{domain}_d_loss"], d_grads = jax.value_and_grad(d_loss)(variables)
        d[domain] = descend(variables, d_grads)
    return descend(state.g, grads), d, losses


def check(gan, state, new, metrics, batch, seen):
    g, d, losses = jax.jit(functools.partial(by_hand, gan))(state, batch, seen)
    close((new.g, {k: new.d[k].variables for k in d}), (g, d), 1e-5, 1e-4)
    assert ("identity_loss" in metrics) == bool(gan.identity_weight)
    losses = {name: loss for name, loss in losses.items() if name in metrics}
    assert len(losses) >= 4
    close({name: metrics[name] for name in losses}, losses, 1e-5, 1e-4)


def fakes(gan, state, batch):
    return {
        "b": np.asarray(apply(gan.generator, state.g["a2b"], batch["a"])),
        "a": np.asarray(apply(gan.generator, state.g["b2a"], batch["b"])),
    }


@functools.cache
def three_steps():
    """[(state, metrics)] after each, on one device."""
    state, found = first_state(POOLED), []
    for t in range(3):
        state, metrics = step(method, POOLED, state, domains(8, seed=t))
        found.append((state, metrics))
    return found


def test_steps_are_the_textbooks():
    """Both generators', then both discriminators', which see what pools in plain Python hold."""
    state, plain, exchanged = first_state(POOLED), {k: PlainPool(12) for k in "ab"}, 0
    for t, (new, metrics) in enumerate(three_steps()):
        batch, rng, seen = domains(8, seed=t), jax.random.fold_in(RNG, t), {}
        fake = fakes(POOLED, state, batch)
        for i, k in enumerate("ab"):
            seen[k] = plain[k].query(fake[k], draws(jax.random.fold_in(rng, i), 8, 12))
            stored = np.stack(plain[k].images)
            close(np.asarray(new.pools[k].images)[: len(stored)], stored)
            exchanged += not np.array_equal(seen[k], fake[k])
        check(POOLED, state, new, metrics, batch, seen)
        assert not same(new.g, state.g) and not same(new.d["a"].variables, state.d["a"].variables)
        state = new
    assert exchanged >= 2 and state.step == 3


def test_a_step_without_identity_and_pools():
    gan = make(identity_weight=0.0, cycle_weights=(5.0, 0.5), weight=0.6)
    state, batch = first_state(gan), domains(8)
    assert state.pools == {"a": None, "b": None}
    new, metrics = step(method, gan, state, batch)
    check(gan, state, new, metrics, batch, fakes(gan, state, batch))
    # Two passes of a generator are spared, and their pullbacks.
    train_step = functools.partial(method.train_step, dataclasses.replace(gan, identity_weight=1.0))
    costs = [
        jax.jit(f).lower(state, batch, RNG).cost_analysis()["flops"]
        for f in (functools.partial(method.train_step, gan), train_step)
    ]
    assert costs[0] < 0.9 * costs[1]


def test_each_update_leaves_the_others_alone():
    batch, state, still = domains(8), first_state(POOLED), optax.set_to_zero()
    new, _ = step(method, make(g_tx=still), state, batch)
    assert same(new.g, state.g)
    assert all(not same(new.d[k].variables, state.d[k].variables) for k in "ab")
    new, _ = step(method, make(d_tx=still), state, batch)
    assert same([new.d[k].variables for k in "ab"], [state.d[k].variables for k in "ab"])
    assert all(not same(new.g[k], state.g[k]) for k in new.g)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_every_layout_has_the_same_state(mode):
    batches = [domains(8, seed=t) for t in range(3)]
    make_it = functools.partial(make, pool_size=12)
    found = trained(method, make_it, mode, 8, batches, first_state(POOLED))
    close(found[0], three_steps()[-1][0])
    close(found[1], three_steps()[-1][1], 1e-5, 1e-4)
    assert found[0].pools["a"].count == 12


def test_two_runs_are_the_same():
    assert bits(three_steps.__wrapped__()) == bits(three_steps())


def test_averages_and_colours():
    state, ((new, _), (newer, _), _) = first_state(POOLED), three_steps()
    # 8 images are one half-life.
    close(new.ema, jax.tree.map(lambda old, x: (old + x) / 2, state.ema, new.g))
    assert method.weights(new) is new.ema and method.weights(new.replace(ema=None)) is new.g
    for k in "ab":
        both = np.concatenate([domains(8, seed=t)[k] for t in (0, 1)])
        np.testing.assert_allclose(newer.colours[k], both.mean((0, 1, 2)), atol=1e-6)


# ---- what it is used for ----


@functools.partial(jax.jit, static_argnums=(0, 3))
def translated(gan, state, images, direction):
    return method.translate(gan, state, images, direction)


@pytest.mark.parametrize("shape", [(8, 12), (20, 36)])
def test_translates_other_sizes(shape):
    """By the averaged weights."""
    gan = make(generator=Generator(width=2, blocks=1, init_gain=0.2))
    images = np.random.default_rng(0).uniform(-1, 1, (2, *shape, 3)).astype(np.float32)
    state = jax.jit(functools.partial(method.init_state, gan))(RNG, domains(1))
    state = state.replace(ema=louder(state.g))
    assert method.multiple(gan) == 4
    made = translated(gan, state, images, "b2a")
    assert made.shape == images.shape and made.dtype == jnp.float32
    np.testing.assert_allclose(made, apply(gan.generator, state.ema["b2a"], images), atol=1e-5)


def test_a_direction_that_is_none():
    with pytest.raises(UserError, match=r"no direction 'a2c'\. Did you mean 'a2b'"):
        method.translate(POOLED, first_state(POOLED), domains()["a"], "a2c")
    with pytest.raises(UserError, match="no direction 'a2c'"):
        method.sample(make(direction="a2c"), first_state(POOLED), RNG, domains())


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_eval_step_is_numpys(direction):
    gan, batch = make(direction=direction), held_out()
    colours = {"a": jnp.array([0.1, 0.2, -0.3]), "b": jnp.array([0.5, 0.1, 0.0])}
    state = first_state(POOLED).replace(colours=colours)
    source, target = direction.split("2")
    made = translated(gan, state, batch[source], direction)
    found = method.eval_step(gan, state, batch, RNG)
    constant = np.broadcast_to(np.asarray(colours[target]), batch[target].shape)
    check_paired(found, batch[target], batch["valid"], constant, batch[source], made)
    back = translated(gan, state, made, f"{target}2{source}")
    expected = masked(l164(back, batch[source]), batch["valid"])
    np.testing.assert_allclose(found["cycle_l1"], expected, rtol=1e-4)
    np.testing.assert_allclose(method.sample(gan, state, RNG, batch), made, atol=1e-5)
    del batch[target]  # without the truth
    assert list(method.eval_step(gan, state, batch, RNG)) == ["cycle_l1"]


def test_preview_is_a_tour_of_each_direction():
    batch, state = domains(9), three_steps()[-1][0]
    grids = jax.jit(functools.partial(method.preview, POOLED))(state, RNG, batch)
    shape = (8, 4, SIZE, SIZE, 3)
    assert {k: x.shape for k, x in grids.items()} == {"a2b": shape, "b2a": shape}
    a = batch["a"][:8]
    there = translated(POOLED, state, a, "a2b")
    columns = [a, there, *(translated(POOLED, state, x, "b2a") for x in (there, a))]
    np.testing.assert_allclose(grids["a2b"], np.stack(columns, 1), atol=1e-5)


def test_diagnose():
    fine = {"a2b_correlation": 0.5, "b2a_correlation": 0.9}
    assert method.diagnose(1000, fine) is None
    inverted = fine | {"b2a_correlation": -0.8}
    assert method.diagnose(100, inverted) is None
    assert method.diagnose(1000, inverted).startswith("b2a turns dark into bright")


# ---- from a config ----

TINY = dict(
    generator__width=2,
    generator__blocks=1,
    adversary__discriminator__width=2,
    adversary__discriminator__num_layers=1,
)


def test_from_config_is_as_published():
    gan = method.from_config(small_config(method, eval__direction="b2a"), "data")
    published = CycleGAN(
        generator=Generator(3, 64, 9), g_tx=gan.g_tx, adversary=gan.adversary, direction="b2a",
        ema_half_life=10_000.0, axis_name="data",
    )  # fmt: skip
    assert gan == published
    expected = Discriminator(64, 3, "instance", axis_name="data")
    judge = gan.adversary
    assert judge.discriminator == expected and judge.weight == 2 and not judge.adaptive
    assert judge.loss is adversarial.least_squares and judge.axis_name == "data"
    wide = {"a": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)}
    state = jax.eval_shape(functools.partial(method.init_state, gan), RNG, wide | {"b": wide["a"]})
    size = sum(x.size for x in jax.tree.leaves(state.g))
    assert size == 2 * 11_378_179
    assert sum(x.size for x in jax.tree.leaves(state.d["a"].variables)) == 2_764_737
    assert state.pools["b"].images.shape == (50, 32, 32, 3)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"adversary__weight": 0.0}, "adversary.weight is 0: CycleGAN needs its discriminator"),
        (
            {"adversary__start": 5},
            "adversary.start is 5, which CycleGAN has no use for: set it to 0",
        ),
        ({"adversary__adaptive": True}, "adversary.adaptive is True.* set it to False"),
        ({"adversary__perceptual_weight": 1.0}, "perceptual_weight is 1.0, which CycleGAN"),
        ({"adversary__loss": "hing"}, "Unknown loss 'hing'"),
        ({"generator__name": "resnet_translater"}, "Did you mean 'resnet_translator'"),
        ({"generator__widht": 3}, "no field 'widht'. Did you mean 'width'"),
    ],
)
def test_from_config_names_what_is_wrong(fields, line):
    with pytest.raises(UserError, match=line) as error:
        method.from_config(small_config(method, **TINY, **fields))
    assert "\n" not in str(error.value)


def test_generators_that_do_not_fit():
    batch_norm = dict(generator={"name": "pix2pix_unet", "width": 2, "levels": 2, "lr": None})
    gan = method.from_config(small_config(method, **TINY | batch_norm))
    with pytest.raises(UserError, match='norm to "instance"'):
        jax.eval_shape(functools.partial(method.init_state, gan), RNG, domains(1))
    with pytest.raises(UserError, match=r"differ in shape: a \(12, 12, 3\), b \(12, 12, 1\)"):
        method.init_state(POOLED, RNG, domains(1) | {"b": domains(1, 1)["b"]})


# ---- a run ----


def test_stopped_and_continued_is_the_same(tmp_path, monkeypatch, compiled_once):
    """To the bit, pools and all, from where they are not yet full."""
    mine = types.ModuleType("mine.toys")
    mine.Generator = Toy
    monkeypatch.setitem(sys.modules, "mine.toys", mine)
    own = dict(generator={"name": "mine.toys", "lr": None})

    def config(total):
        return small_config(
            method, **TINY | own, method="cyclegan", task="unpaired", data__a="digits",
            data__b="digits", pool_size=12, batch_size=8, num_train_steps=total, log_every=1,
            sample_every=0, checkpoint_every=0,
        )  # fmt: skip

    def batches(start):
        index = np.arange(8, dtype=np.int32)
        return (domains(8, seed=t) | {"index": index} for t in range(start, 4))

    whole = train.run(config(4), tmp_path / "whole", batches)
    stopped = train.run(config(1), tmp_path / "parts", batches)
    assert stopped.pools["a"].count == 8
    assert bits(runs.load(tmp_path / "parts").state.pools) == bits(stopped.pools)
    assert bits(train.run(config(4), tmp_path / "parts", batches)) == bits(whole)
    assert whole.pools["b"].count == 12
    assert (tmp_path / "whole" / "samples" / "b2a_0000004.png").exists()


# ---- learning ----


def squares(n, seed, channel):
    """A square of 6 pixels somewhere on black, of one colour."""
    rng = np.random.default_rng(seed)
    images = np.full((n, 16, 16, 3), -0.8, np.float32)
    for image, (row, column) in zip(images, rng.integers(0, 10, (n, 2)), strict=True):
        image[row : row + 6, column : column + 6, channel] = 0.8
    return images


def test_learns_what_the_domains_differ_in():
    """Red squares and green ones, never the same two places: a square changes its colour alone."""
    adam = optax.adam(1e-2, 0.5)
    gan = make(
        weight=2.0, g_tx=adam, d_tx=adam, pool_size=50, identity_weight=0.0,
        cycle_weights=(10.0, 10.0), ema_half_life=0.0,
    )  # fmt: skip
    red, green = (functools.partial(squares, channel=k) for k in (0, 1))
    state = jax.jit(functools.partial(method.init_state, gan))(
        RNG, {"a": red(1, 0), "b": red(1, 0)}
    )
    cycle = []
    for t in range(250):
        batch = {"a": red(8, 2 * t), "b": green(8, 2 * t + 1)}
        state, metrics = step(method, gan, state, batch)
        cycle.append(float(metrics["cycle_loss"]))
    assert np.mean(cycle[-10:]) < 0.5 * np.mean(cycle[:10])
    for direction, images in (("a2b", red(32, 10_000)), ("b2a", green(32, 10_001))):
        truth = images[..., [1, 0, 2]]
        made = translated(gan, state, images, direction)
        assert l164(made, truth).mean() < 0.5 * l164(images, truth).mean()
        assert np.corrcoef(np.ravel(made), truth.ravel())[0, 1] > 0.6
