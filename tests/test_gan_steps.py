"""The GAN's step beyond its plain form, against the same step written out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from gan_helpers import (
    LATENT,
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
    moved,
    normals,
    same,
    started,
)

from aigc_jax import parallel
from aigc_jax.augment.diffaugment import diffaugment
from aigc_jax.errors import UserError
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.losses import adversarial
from aigc_jax.methods import _gan_augment, _gan_updates
from aigc_jax.methods import gan as method
from aigc_jax.methods._gan_augment import Ada
from aigc_jax.methods.gan import Regularizers

# ---- updates ----


def by_hand(gan, state, batch):
    """Parameters of both networks: D's updates one after another, then G's."""
    n = len(batch["image"]) // gan.d_steps
    g, d, softplus = state.g["params"], state.d["params"], jax.nn.softplus

    def draw(g, k):
        label = batch["label"][k :: gan.d_steps] if gan.num_classes else None
        z = normals(drawn_keys(n, update=k), LATENT)
        return gan.generator.apply({"params": g}, z, label, train=True), label

    def judge(d, x, label):
        apply = functools.partial(gan.discriminator.apply, train=True, mutable=["auxiliary"])
        logits, sown = apply({"params": d}, x, label)
        if label is None:
            return logits, 0.0
        chances = jax.nn.log_softmax(sown["auxiliary"]["logits"][0])
        return logits, -jnp.take_along_axis(chances, label[:, None], 1).mean()

    def d_loss(d, k):
        fake, label = draw(g, k)
        real, telling = judge(d, batch["image"][k :: gan.d_steps], label)
        made, _ = judge(d, fake, label)
        adversarial = softplus(-real).mean() + softplus(made).mean()
        if gan.loss.relativistic:
            adversarial = jnp.log(1 + jnp.exp(made - real)).mean()
        return adversarial + gan.auxiliary * telling

    for k in range(gan.d_steps):
        d = descended(d, jax.grad(d_loss)(d, k))

    def g_loss(g):
        fake, label = draw(g, gan.d_steps - 1)
        made, telling = judge(d, fake, label)
        adversarial = softplus(-made).mean()
        if gan.loss.relativistic:
            real = judge(d, batch["image"][gan.d_steps - 1 :: gan.d_steps], label)[0]
            adversarial = jnp.log(1 + jnp.exp(real - made)).mean()
        return adversarial + gan.auxiliary * telling

    return descended(g, jax.grad(g_loss)(g)), d


@pytest.mark.parametrize(
    "fields",
    [
        dict(d_steps=3),
        dict(loss=adversarial.relativistic, num_classes=3, auxiliary=0.7),
    ],
    ids=["three of D", "relativistic"],
)
def test_step_is_the_one_by_hand(fields):
    """Of a relativistic loss G takes real images too, and has to let its own ones' classes tell."""
    gan = make(**fields)
    batch = make_batch(8 * gan.d_steps)
    state = started(gan, batch)
    g, d = jax.jit(lambda s, b: by_hand(gan, s, b))(state, batch)
    new, metrics = compiled(gan)(state, batch, RNG)
    close(new.g["params"], g)
    close(new.d["params"], d)
    assert moved(new.g["params"], state.g["params"]) and not same(new.d, state.d)
    assert new.step == 1 and ("g_auxiliary" in metrics) == (gan.auxiliary > 0)


def test_an_update_of_one_network_leaves_the_other_as_it_is():
    """Statistics and singular vectors too, which a pass through the other would move."""
    both = dict(norm=True, spectral=True)
    gan, batch = make(both, both, loss=adversarial.relativistic), make_batch()
    state = started(gan, batch)
    part = method._part(gan, batch, RNG, 0)
    updates = _gan_updates.update_d, _gan_updates.update_g
    after_d, after_g = (
        jax.jit(lambda state, update=update: update(gan, state, part, None)[0])(state)
        for update in updates
    )
    assert {"params", "batch_stats", "spectral"} == state.g.keys() == state.d.keys()
    for after, mine, other in ((after_d, "d", "g"), (after_g, "g", "d")):
        assert same(getattr(after, other), getattr(state, other))
        kept = dict(getattr(after, mine)), dict(getattr(state, mine))
        for name in ("batch_stats", "spectral"):
            assert moved(kept[0][name], kept[1][name])
        for layer in ("first", "last"):  # on some biases nothing depends
            assert moved(*(tree["params"][layer]["kernel"] for tree in kept))


# ---- part by part ----


def test_parts_of_a_batch_add_up_to_it():
    """Without batch norm; with all that is a mean over examples."""
    weights = Regularizers(lecam=0.3, lecam_start=0, consistency=2.0, consistency_latent=3.0)
    fields = dict(r1=2.0, regularizers=weights, d_steps=2, augment=("color",))
    whole, parts = make(**fields), make(**fields, accumulate=4)
    batch = make_batch(32)
    state = started(whole, batch)
    state = state.replace(extras={"lecam_real": jnp.float32(0.1), "lecam_fake": jnp.float32(0.2)})
    (one, of_one), (four, of_four) = (compiled(gan)(state, batch, RNG) for gan in (whole, parts))
    close(one.d, four.d, atol=1e-6)
    close(one.g, four.g, atol=1e-6)
    close(one.extras, four.extras)
    assert moved(one.d, state.d) and moved(one.g, state.g) and of_one.keys() == of_four.keys()
    exact = {name for name in of_one if name != "diversity"}  # of each part its own
    close({k: of_one[k] for k in exact}, {k: of_four[k] for k in exact}, atol=1e-5)


def test_a_batch_that_has_no_such_parts():
    gan, batch = make(accumulate=3), make_batch()
    state = started(gan, batch)
    with pytest.raises(UserError, match="8 images can't be taken in 3 parts"):
        jax.eval_shape(compiled(gan), state, batch, RNG)


EVERYTHING = {
    "part by part": lambda axis_name: make(
        dict(norm=True), dict(norm=True, spectral=True), num_classes=3, axis_name=axis_name,
        d_steps=2, accumulate=2, r1=1.0, penalty_every=2, penalty_end=0.5, penalty_steps=4,
        mismatch=0.3, auxiliary=0.5, dropout=0.2, augment=("translation",), rollback=True,
        ema_half_life=20.0,
        regularizers=Regularizers(lecam=0.3, lecam_start=1, consistency=1.0, consistency_fake=2.0),
    ),
    "at once": lambda axis_name: make(
        Styled(axis_name), loss=adversarial.relativistic, axis_name=axis_name, d_steps=2,
        r1=0.5, penalty_every=2,
        regularizers=Regularizers(
            lecam=0.3, lecam_start=1, consistency=1.0, consistency_latent=2.0, path_length=2.0,
            path_every=2, orthogonal=1e-3,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERYTHING)
def test_same_state_on_eight_devices(kind):
    begun, ends = started(EVERYTHING[kind](None), make_batch()), []
    for mode, devices in (("jit", 1), ("pmap", 8)):
        layout = parallel.layout(mode, jax.devices()[:devices])
        gan = EVERYTHING[kind](layout.axis_name)
        state = layout.place_state(jax.tree.map(jnp.copy, begun))
        run = layout.compile(functools.partial(method.train_step, gan), state)
        for seed in range(3):
            state, metrics = run(state, layout.place_batch(make_batch(64, seed)), RNG)
        ends.append(jax.device_get((state, metrics)))
    (one, of_one), (eight, of_eight) = ends
    close(one, eight, atol=2e-5)
    close(of_one, of_eight, atol=1e-4, rtol=1e-3)
    assert one.step == 3 and of_one["r1"] > 0 and of_one["lecam"] > 0
    still = {"lr_scale": 1.0} if kind == "part by part" else {}
    assert moved(one.extras | still, begun.extras | dict.fromkeys(still, 0.0))


# ---- what D sees ----


def test_adaptive_augmentation_begins_with_none_and_rises_as_planned():
    """Its p follows half a cosine of 100 images."""
    plain = make()
    rising = make(augment=("ada",), ada=Ada(kimg=0.1, every=0, p=0.4))
    batch = make_batch()
    new, _ = compiled(plain)(started(plain, batch), batch, RNG)
    seen, metrics = compiled(rising)(started(rising, batch), batch, RNG)
    close(seen.d, new.d, atol=1e-5)
    close(seen.g, new.g, atol=1e-5)
    follow = functools.partial(_gan_augment.followed, rising, {"ada_p": jnp.float32(0)})
    found = [follow(jnp.int32(step), {}, 8)["ada_p"] for step in range(15)]
    shown = np.minimum(8 * np.arange(1, 16) / 100, 1)
    np.testing.assert_allclose(found, 0.2 * (1 - np.cos(np.pi * shown)), atol=1e-6)
    np.testing.assert_allclose(metrics["ada_p"], found[0], rtol=1e-5)
    assert found[-1] == np.float32(0.4)


def test_slopes_are_of_the_images_before_their_augmentation():
    gan, batch = make(augment=("color",), r1=1.0), make_batch()
    state = started(gan, batch)
    _, metrics = compiled(gan)(state, batch, RNG)
    keys = folded(drawn_keys(8), 100)

    def slopes(see):
        judge = lambda x: gan.discriminator.apply(state.d, see(x), train=True).sum()  # noqa: E731
        return np.square(jax.grad(judge)(batch["image"])).sum() / 8 / 2

    through = slopes(lambda x: diffaugment(("color",), x, keys))
    np.testing.assert_allclose(metrics["r1"], through, rtol=1e-4)
    assert not np.isclose(through, slopes(lambda x: x), rtol=0.01)


def test_without_policies_nothing_is_done():
    image = make_batch()["image"]
    assert _gan_augment.seen(make(augment=_gan_augment.parse("")), {}, image, None, 0) is image


# ---- a run that is rolled back ----


def test_a_calmed_run_takes_steps_half_as_long():
    batch = make_batch()
    for still, mine in (({"g_tx": optax.set_to_zero()}, "d"), ({"d_tx": optax.set_to_zero()}, "g")):
        gan = make(**still, rollback=True)
        state = started(gan, batch)
        calm = method.calmed(state, 0.5)
        assert calm.extras == {"lr_scale": 0.5}
        whole, half = (compiled(gan)(s, batch, RNG) for s in (state, calm))
        before = getattr(state, mine)["params"]
        step = lambda new: jax.tree.map(jnp.subtract, getattr(new, mine)["params"], before)  # noqa: B023, E731
        close(jax.tree.map(lambda x: x / 2, step(whole[0])), step(half[0]), atol=1e-7)
        assert whole[1]["lr_scale"] == 1 and half[1]["lr_scale"] == 0.5
    assert method.lr_scale(state) == 1 and method.lr_scale(calm) == 0.5
    assert "lr_scale" not in started(make(), batch).extras


# ---- the averaged weights in use ----


def test_standing_statistics_are_means_over_batches():
    """Of the layer's input, each batch's moments by themselves, of the averaged weights."""
    gan = make(dict(norm=True), num_classes=3, standing=3, ema_half_life=8.0)
    batch = make_batch()
    state, _ = compiled(dataclasses.replace(gan, standing=0))(started(gan, batch), batch, RNG)
    layer, moments = state.ema["params"]["first"], []
    for i in range(3):
        keys = [jax.random.fold_in(jax.random.key(0), 64 * i + j) for j in range(64)]
        label = jnp.stack([jax.random.randint(jax.random.fold_in(k, 1), (), 0, 3) for k in keys])
        z = np.concatenate([normals(keys, LATENT), np.eye(3)[np.asarray(label)]], -1)
        x = z @ np.float64(layer["kernel"]) + np.asarray(layer["bias"])
        moments.append((x.mean(0), x.var(0, ddof=1)))
    mean, var = (np.mean(x, 0) for x in zip(*moments, strict=True))
    settled = method.settle(gan, state)
    close(settled.ema["batch_stats"]["norm"], {"mean": mean, "var": var}, atol=1e-5)
    assert same(settled.ema["params"], state.ema["params"]) and same(settled.g, state.g)
    assert moved(settled.ema["batch_stats"], state.ema["batch_stats"])
    # Without an average they are G's own; with nothing to do all stays.
    alone = method.settle(gan, state.replace(g=state.ema, ema=None))
    close(alone.g, settled.ema)
    assert method.settle(dataclasses.replace(gan, standing=0), state) is state
    plain = make(standing=3)
    begun = started(plain, batch)
    assert method.settle(plain, begun) is begun


class Own(nn.Module):
    """A generator that knows no axis, and whose norm's momentum is another."""

    latent_dim: int = LATENT

    @nn.compact
    def __call__(self, z, label=None, *, train):
        x = BatchNorm(momentum=0.5, name="norm")(z, train=train)
        return jnp.tanh(nn.Dense(SIZE * SIZE)(x)).reshape(-1, SIZE, SIZE, 1)


def test_standing_statistics_of_a_generator_of_ones_own():
    gan = make(Own(), standing=1)
    settled = method.settle(gan, started(gan, make_batch()))
    z = normals([jax.random.fold_in(jax.random.key(0), j) for j in range(64)], LATENT)
    expected = {"mean": z.mean(0), "var": z.var(0, ddof=1)}
    close(settled.g["batch_stats"]["norm"], expected, atol=1e-6)


def test_truncation_is_of_latents_or_of_styles():
    """Of z where there are no styles; else z stays and w shrinks."""
    fields, batch = {"index": jnp.arange(64)}, make_batch()
    for g in (Draws(), Styled()):
        gan = make(g)
        state = started(gan, batch)
        found = method.sample(gan, state, RNG, fields, truncation=0.5)
        if isinstance(g, Draws):
            z = method.latents(gan, RNG, fields, 0.5)
            assert 0.4 < np.abs(z).max() <= 0.5
            expected = g.apply(state.g, z, train=False)
        else:
            z = method.latents(gan, RNG, fields)
            ws = g.apply(state.g, z, train=False, method="mapping")
            expected = g.apply(state.g, ws / 2, train=False, method="synthesis")
        close(found, expected)
