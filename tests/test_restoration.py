"""Restoration's step against the textbook's, with and without holes; layouts, measures, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from translation_helpers import (
    LR,
    RNG,
    bits,
    check_paired,
    close,
    descend,
    louder,
    masked,
    same,
    small_config,
    step,
    trained,
)

from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.losses import adversarial
from aigc_jax.methods import restoration as method
from aigc_jax.methods.restoration import Restoration
from aigc_jax.models import dncnn, unet
from aigc_jax.models.patchgan import Discriminator

SGD = optax.sgd(LR)
SIZE = 12


class Tiny(nn.Module):
    """A network with a batch norm, that sees the mask where there is one."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, mask=None, *, train=False):
        seen = x if mask is None else jnp.concatenate([x, mask], -1)
        y = BatchNorm(axis_name=self.axis_name)(Conv(4)(seen), train=train)
        return x + Conv(x.shape[-1])(nn.leaky_relu(y))


def make(axis_name=None, weight=0.0, **fields):
    judge = Adversary(
        discriminator=Discriminator(width=2, num_layers=1, axis_name=axis_name),
        tx=SGD,
        loss=adversarial.hinge,
        weight=weight,
        adaptive=False,
        axis_name=axis_name,
    )
    fields = dict(ema_half_life=8.0, ema_ramp_up=0.0) | fields
    return Restoration(
        model=Tiny(axis_name=axis_name),
        tx=SGD,
        adversary=judge if weight else None,
        axis_name=axis_name,
        **fields,
    )


def damaged(n=8, holes=False, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    target = rng.uniform(-0.9, 0.9, (n, size, size, 3)).astype(np.float32)
    if not holes:
        noise = rng.normal(size=target.shape).astype(np.float32)
        return {"source": target + 0.3 * noise, "target": target}
    mask = np.ones((n, size, size, 1), np.float32)
    for i, (y, x) in enumerate(rng.integers(0, size - 5, (n, 2))):
        mask[i, y : y + 5, x : x + 4] = 0
    return {"source": target * mask, "target": target, "mask": mask}


@functools.cache
def first_state(spec, holes=False):
    state = jax.jit(functools.partial(method.init_state, spec))(RNG, damaged(1, holes))
    model = {**state.model, "params": louder(state.model["params"], 2.0)}
    judge = state.adversary
    if judge is not None:
        loud = {**judge.variables, "params": louder(judge.variables["params"])}
        judge = judge.replace(variables=loud)
    return state.replace(model=model, ema=model, adversary=judge)


REGRESSION, ABSOLUTE = make(), make(loss="l1", hole_weight=6.0)
JUDGED = make(weight=0.7, loss="l1", hole_weight=3.0)


# ---- the step ----


def by_hand(spec, state, batch):
    """D by two passes, then the network through D as it now is."""
    source, target, mask = batch["source"], batch["target"], batch.get("mask")

    def apply(params):
        variables = {**state.model, "params": params}
        return spec.model.apply(variables, source, mask, train=True, mutable=["batch_stats"])[0]

    def whole(made):
        return made if mask is None else mask * source + (1 - mask) * made

    def pixels(made):
        weight = 1.0 if mask is None else jnp.where(mask == 1, 1.0, spec.hole_weight)
        error = jnp.abs(made - target) if spec.loss == "l1" else jnp.square(made - target)
        return jnp.mean(weight * error)

    def judge(params, x):
        variables = {**state.adversary.variables, "params": params}
        seen = jnp.concatenate([source if mask is None else mask, x], -1)
        network = spec.adversary.discriminator
        return network.apply(variables, seen, train=True, mutable=["batch_stats"])[0]

    d = None
    if spec.adversary is not None:
        fake, d = whole(apply(state.model["params"])), state.adversary.variables["params"]
        loss = spec.adversary.loss

        def d_loss(params):
            return loss.discriminator(judge(params, target), judge(params, fake))

        d = descend(d, jax.grad(d_loss)(d))

    def loss_fn(params):
        made = apply(params)
        if d is None:
            return pixels(made)
        return pixels(made) + spec.adversary.weight * spec.adversary.loss.generator(
            judge(d, whole(made))
        )

    return descend(state.model["params"], jax.grad(loss_fn)(state.model["params"])), d


@pytest.mark.parametrize("holes", [False, True], ids=["restore", "inpaint"])
@pytest.mark.parametrize("spec", [REGRESSION, ABSOLUTE, JUDGED], ids=["l2", "l1", "judged"])
def test_step_is_the_textbooks(spec, holes):
    state, batch = first_state(spec, holes), damaged(8, holes)
    new, metrics = step(method, spec, state, batch)
    params, d = jax.jit(functools.partial(by_hand, spec))(state, batch)
    close(new.model["params"], params, 1e-5, 1e-4)
    assert not same(new.model["params"], state.model["params"])
    assert not same(new.model["batch_stats"], state.model["batch_stats"])
    if d is None:
        assert new.adversary is None and set(metrics) == {"loss", "psnr", "grad_norm"}
    else:
        close(new.adversary.variables["params"], d, 1e-5, 1e-4)


def test_psnr_is_of_what_is_put_together():
    """Known pixels are exact, and the error is the mean over the whole image."""
    state, batch = first_state(REGRESSION, True), damaged(8, True)
    _, metrics = step(method, REGRESSION, state, batch)
    variables, args = state.model, (batch["source"], batch["mask"])
    made, _ = REGRESSION.model.apply(variables, *args, train=True, mutable=["batch_stats"])
    error = np.mean(((np.asarray(made) - batch["target"]) * (1 - batch["mask"])) ** 2)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(4 / error), rtol=1e-4)


@functools.cache
def two_steps(spec, holes):
    state = first_state(spec, holes)
    for t in range(2):
        state, metrics = step(method, spec, state, damaged(8, holes, seed=t))
    return state, metrics


@pytest.mark.parametrize("mode", ["pmap", "jit"])
@pytest.mark.parametrize("holes", [False, True], ids=["restore", "inpaint"])
def test_every_layout_has_the_same_state(mode, holes):
    fields = dict(weight=0.7, loss="l1", hole_weight=3.0)
    batches = [damaged(8, holes, seed=t) for t in range(2)]
    args = functools.partial(make, **fields), mode, 8, batches, first_state(JUDGED, holes)
    state, metrics = trained(method, *args)
    close(state, two_steps(JUDGED, holes)[0])
    close(metrics, two_steps(JUDGED, holes)[1], 1e-5, 1e-4)


def test_two_runs_are_the_same():
    assert bits(two_steps.__wrapped__(JUDGED, True)) == bits(two_steps(JUDGED, True))


def test_averages():
    state = first_state(REGRESSION)
    new, _ = step(method, REGRESSION, state, damaged())  # 8 images: one half-life
    close(new.ema, jax.tree.map(lambda old, x: (old + x) / 2, state.ema, new.model))
    assert method.weights(new) is new.ema and method.weights(new.replace(ema=None)) is new.model


# ---- what it is used for ----


@functools.partial(jax.jit, static_argnums=0)
def restored(spec, state, images, mask=None):
    return method.restore(spec, state, images, mask)


def test_known_pixels_stay_to_the_bit_and_unknown_ones_are_not_looked_at():
    state, batch = two_steps(JUDGED, True)[0], damaged(4, True, seed=5, size=20)
    made = np.asarray(restored(JUDGED, state, batch["target"], batch["mask"]))
    known = np.broadcast_to(batch["mask"] == 1, made.shape)
    assert (made[known] == batch["target"][known]).all()
    assert (made[~known] != batch["target"][~known]).all() and np.abs(made).max() <= 1
    other = np.where(known, batch["target"], 0.77)
    assert (np.asarray(restored(JUDGED, state, other, batch["mask"])) == made).all()
    by_mask = method.sample(JUDGED, state, RNG, batch)
    np.testing.assert_allclose(by_mask, made, atol=1e-6)


def test_restores_other_sizes_by_the_averaged_weights():
    state, batch = two_steps(REGRESSION, False)[0], damaged(3, size=17)
    made = restored(REGRESSION, state, batch["source"])
    expected = jnp.clip(REGRESSION.model.apply(state.ema, batch["source"]), -1, 1)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    np.testing.assert_allclose(
        restored(REGRESSION, state, batch["source"][:1]), made[:1], atol=1e-5
    )


@pytest.mark.parametrize("holes", [False, True], ids=["restore", "inpaint"])
def test_eval_step_is_numpys(holes):
    state = two_steps(REGRESSION, holes)[0]
    batch = damaged(4, holes) | {"valid": np.float32([1, 1, 1, 0])}
    found = method.eval_step(REGRESSION, state, batch, RNG)
    made = np.asarray(method.sample(REGRESSION, state, RNG, batch))
    source = batch["source"]
    mask = batch.get("mask", np.zeros_like(source[..., :1]))
    shown = mask if holes else np.ones_like(mask)
    colour = (source * shown).sum((1, 2), keepdims=True) / shown.sum((1, 2), keepdims=True)
    constant = np.where(mask == 1, source, colour)
    copied = np.clip(source, -1, 1)
    check_paired(found, batch["target"], batch["valid"], constant, copied, made)
    assert len(found) == 12 + 3 * holes
    for prefix, images in {"constant_": constant, "copied_": copied, "": made}.items():
        if holes:
            error = ((images - batch["target"]).astype(np.float64) ** 2).mean(-1)
            inside = np.array([e[m == 0].mean() for e, m in zip(error, mask[..., 0], strict=True)])
            expected = masked(10 * np.log10(4 / inside), batch["valid"])
            np.testing.assert_allclose(found[f"{prefix}hole_psnr"], expected, rtol=1e-4)


def test_preview_is_damaged_restored_truth():
    batch, (state, _) = damaged(9, True), two_steps(REGRESSION, True)
    grids = jax.jit(functools.partial(method.preview, REGRESSION))(state, RNG, batch)
    made = restored(REGRESSION, state, batch["source"][:8], batch["mask"][:8])
    expected = np.stack([batch["source"][:8], made, batch["target"][:8]], 1)
    assert set(grids) == {"restored"}
    np.testing.assert_allclose(grids["restored"], expected, atol=1e-5)


# ---- from a config ----


def test_from_config():
    spec = method.from_config(small_config(method), "data")
    assert isinstance(spec.model, dncnn.Restorer) and spec.model.channels == 3
    assert (spec.adversary, spec.loss, spec.axis_name) == (None, "l2", "data")
    fields = dict(model={"name": "unet", "conv": "gated"}, adversary__weight=0.1, loss="l1")
    spec = method.from_config(small_config(method, **fields))
    assert isinstance(spec.model, unet.Restorer) and spec.model.conv == "gated"
    assert spec.adversary.weight == 0.1 and method.multiple(spec) == 8


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"loss": "L1"}, "Unknown config.loss 'L1'"),
        ({"model": {"name": "dncn"}}, "dncnn"),
        ({"model": {"name": "dncnn", "dept": 3}}, "depth"),
    ],
)
def test_users_mistakes(fields, text):
    with pytest.raises(UserError, match=text):
        method.from_config(small_config(method, **fields))


def test_other_tasks_batches_are_refused():
    with pytest.raises(UserError, match="task to restore or inpaint"):
        method.init_state(REGRESSION, RNG, {"image": jnp.zeros((1, 8, 8, 3))})
