"""A probe that reads the objects of captioned shapes off a picture: a centre-point detector.

Trained as Zhou et al. 2019 ("Objects as Points", section 3): a penalty-reduced focal loss on a
heat map of the centres, and at each centre the offset's L1 and the attributes' cross-entropy.
Model: `aigc_jax.models.detector`. Config: `configs/shapes_probe.py`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import models, optim
from aigc_jax.data import shapes
from aigc_jax.filters import gaussian
from aigc_jax.metrics import attributes
from aigc_jax.models.detector import Maps, peaks
from aigc_jax.parallel import axis_size, example_keys, pmean
from aigc_jax.types import Array, Batch, Metrics

MOST = 4  # objects that are read: one more than a scene has, so that too many are seen to be
# The heat from which on an object is there: less than half, as a centre at the border of two cells
# shares it between them. The original takes 0.3 too; of 10,000 pictures no peak is misjudged.
_ENOUGH = 0.3


class State(struct.PyTreeNode):
    """What training changes; `variables` are the network's, `ema` their moving average."""

    step: Array
    variables: Any
    opt: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class Probe:
    """The static half.

    Attributes:
      model: module(images, train=) -> `models.detector.Maps`.
      noise, blur: most of the damage that training pictures get, drawn for each: the noise's
        standard deviation, and the weight of a smoothed copy. Generated pictures have some.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    noise: float = 0.0
    blur: float = 0.0
    ema_half_life: float = 10_000.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> Probe:
    """The static half that a config describes. UserError for names that don't exist."""
    model = models.build(
        config.model,
        "Detector",
        classes=attributes.CLASSES,
        backgrounds=len(shapes.BACKGROUNDS),
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    return Probe(
        model=model,
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        noise=config.noise,
        blur=config.blur,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(spec: Probe, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step; `batch` gives the shape of `image`."""
    variables = spec.model.init(rng, batch["image"][:1], train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt=spec.tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if spec.ema_half_life else None,
    )


def train_step(spec: Probe, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update on the task `scene`'s `image`, `scene` (B, 3, 8) and `background` (B,)."""
    keys = example_keys(jax.random.fold_in(rng, state.step), len(batch["image"]), spec.axis_name)
    images = _damaged(spec, keys, batch["image"])

    def loss_fn(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
        variables = {**state.variables, "params": params}
        maps, stats = spec.model.apply(variables, images, train=True, mutable=["batch_stats"])
        terms = losses(maps, batch, spec.model.classes)
        return sum(terms.values()), (terms, stats)

    (loss, (terms, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.variables["params"]
    )
    grads = pmean(grads, spec.axis_name)
    params, opt = optim.update(spec.tx, grads, state.opt, state.variables["params"])
    variables = {**state.variables, **stats, "params": params}
    metrics = pmean({"loss": loss, **terms}, spec.axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    total = len(images) * axis_size(spec.axis_name)
    rates = spec.ema_half_life, spec.ema_ramp_up
    ema = optim.averaged(state.ema, variables, state.step, total, *rates)
    return state.replace(step=state.step + 1, variables=variables, opt=opt, ema=ema), metrics


def losses(maps: Maps, batch: Batch, classes: tuple[int, ...]) -> Metrics:
    """The four terms, each the mean over examples of the mean over an example's objects."""
    scene = batch["scene"]
    there, centre = scene[..., 0], scene[..., 5:7]
    count = jnp.maximum(there.sum(1), 1)
    grid = maps.heat.shape[1]
    cell = jnp.clip(jnp.floor(centre * grid), 0, grid - 1)
    at = _cell_mask(cell, grid) * there[..., None, None]
    target = _bumps(cell, there, scene[..., 7] * grid, grid)
    heat = focal(maps.heat, target).sum((1, 2)) / count
    offset = jnp.einsum("bogh,bghk->bok", at, maps.offset)
    wrong = jnp.abs(offset - (centre * grid - cell - 0.5)).sum(-1)
    logits = jnp.einsum("bogh,bghk->bok", at, maps.classes)
    parts = jnp.split(logits, _cuts(classes), -1)
    labels = scene[..., 1:5].astype(jnp.int32)
    entropy = sum(_cross_entropy(part, labels[..., i]) for i, part in enumerate(parts))
    return {
        "heat_loss": heat.mean(),
        "offset_loss": ((wrong * there).sum(1) / count).mean(),
        "class_loss": ((entropy * there).sum(1) / count).mean(),
        "background_loss": _cross_entropy(maps.background, batch["background"]).mean(),
    }


def focal(logits: Array, target: Array) -> Array:
    """Penalty-reduced focal loss of each cell (Zhou et al. 2019, equation 1: alpha 2, beta 4).

    logits and target (...), the target 1 at centres and below 1 around them.
    """
    p = jax.nn.sigmoid(logits)
    hit = -((1 - p) ** 2) * jax.nn.log_sigmoid(logits)
    miss = -((1 - target) ** 4) * p**2 * jax.nn.log_sigmoid(-logits)
    return jnp.where(target >= 1, hit, miss)


def predict(spec: Probe, state: State, images: Array) -> tuple[attributes.Reading, Array]:
    """The objects of images in [-1, 1], and features (B, D), by the averaged weights."""
    maps = spec.model.apply(weights(state), images, train=False)
    found = peaks(maps, MOST)
    parts = jnp.split(found.classes, _cuts(spec.model.classes), -1)
    classes = jnp.concatenate([jax.nn.log_softmax(part) for part in parts], -1)
    background = jax.nn.log_softmax(maps.background)
    present = found.present - math.log(_ENOUGH / (1 - _ENOUGH))
    return attributes.Reading(present, found.centre, classes, background), maps.features


def weights(state: State) -> Any:
    """The averaged variables, which `predict` reads by and another run may use."""
    return state.variables if state.ema is None else state.ema


def eval_step(spec: Probe, state: State, batch: Batch, rng: Array) -> dict[str, tuple]:
    """(how many are right, of how many) of each attribute, of examples where `valid` (B,) is 1.

    Asked is the whole scene, whatever its caption says; relations are asked as that says.
    """
    reading, _ = predict(spec, state, batch["image"])
    whole = attributes.asked_of(batch["scene"], batch["background"])
    right, asked = attributes.judge(reading, whole)
    by_caption, of_caption = attributes.judge(reading, batch["asked"])
    right["relation"], asked["relation"] = by_caption["relation"], of_caption["relation"]
    valid = batch["valid"][:, None]
    counted = {name: asked[name] * valid for name in right}
    return {name: ((right[name] * n).sum(), n.sum()) for name, n in counted.items()}


def _damaged(spec: Probe, keys: Array, images: Array) -> Array:
    """Images (B, S, S, C) with noise and blur, each by its key."""
    blur, noise = jax.vmap(lambda key: jax.random.uniform(key, (2, 1, 1, 1)))(keys).swapaxes(0, 1)
    smooth = jax.vmap(functools.partial(gaussian, sigma=0.8))(images)
    draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), images.shape[1:]))
    images = images + spec.blur * blur * (smooth - images)
    return jnp.clip(images + spec.noise * noise * draw(keys), -1, 1)


def _cuts(classes: tuple[int, ...]) -> list[int]:
    return [sum(classes[: i + 1]) for i in range(len(classes) - 1)]


def _cell_mask(cell: Array, grid: int) -> Array:
    """(B, O, 2) cells x, y -> (B, O, G, G), 1 there."""
    one_hot = jax.nn.one_hot(cell.astype(jnp.int32), grid)
    return one_hot[:, :, 1, :, None] * one_hot[:, :, 0, None, :]


def _bumps(cell: Array, there: Array, radius: Array, grid: int) -> Array:
    """The heat to be, (B, G, G): 1 at the cells of objects, and a Gaussian by their size around.

    cell (B, O, 2) x, y; there (B, O); radius (B, O) in cells.
    """
    along = jnp.arange(grid, dtype=jnp.float32).reshape(1, 1, 1, grid) - cell[..., None]
    spread = jnp.maximum(radius / 3, 0.7)[..., None, None]
    x, y = jnp.moveaxis(jnp.exp(-(along**2) / (2 * spread**2)), 2, 0)
    return jnp.max(y[..., None] * x[..., None, :] * there[..., None, None], 1)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
