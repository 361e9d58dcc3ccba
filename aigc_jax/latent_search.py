"""Holes filled by a generator that was never shown one: the latent whose image fits the rest.

Semantic inpainting (Yeh et al. 2017, section 3): of all that a GAN or a VAE can draw, the image
that is nearest to the known pixels around the hole and still looks real. Nothing is trained for
masks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.sparse.linalg import cg
from tqdm import tqdm

from aigc_jax import latents, parallel
from aigc_jax.errors import UserError
from aigc_jax.runs import Run
from aigc_jax.types import Array, Batch, to_uint8

_WINDOW = 7
_PRIOR = {"realism": 0.003, "normal": 0.1}


class Search:
    """Fills holes by a run's generator, on all of this process's devices, compiled once.

    For each image Adam goes down, in latents z of d numbers, from several starts at once,

        sum of w |decode(z) - image| + prior * (-realism, or |z|^2 / 2)

    over subpixels in [-1, 1], with w of `context_weights`. Of a method with a discriminator the
    second term is the loss of its generator, of others minus the log density of the
    latents' normal prior. Normal latents lie near the sphere of radius sqrt(d), and z is kept
    inside it, as the paper's uniform ones are in their box. The start that ends lowest is taken.

    Args:
      run: of a method with `latents` (B, d) and `decode`, and maybe `realism`.
      steps: of Adam, its rate falling from `lr` to 0 by half a cosine.
      restarts: latents from which each image's search starts; of a conditional run, where no
        labels are given, each of a class of its own, as far as there are so many.
      lr: in units of the latents' standard deviation.
      prior: weight of the second term; None: 0.003 as published with a discriminator, else 0.1.
      blend: see `blended`; else what is made is put into the hole as it is.
      batch_size: images at once, rounded up to as many for each device.

    Raises:
      UserError: the method draws no images from latents; fewer than 1 step or restart.
    """

    def __init__(
        self,
        run: Run,
        *,
        steps: int = 500,
        restarts: int = 4,
        lr: float = 0.1,
        prior: float | None = None,
        blend: bool = False,
        batch_size: int = 32,
    ) -> None:
        latents.check_method(run.config.method, "latents", "decode")
        latents.check_untold(run.config)
        for name, value in (("steps", steps), ("restarts", restarts)):
            if value < 1:
                raise UserError(f"--{name} {value}: it must be at least 1.")
        self._config, self._restarts = run.config, restarts
        self._layout = parallel.layout("jit", jax.local_devices())
        self._state = self._layout.place_state(run.state)
        devices = len(self._layout.devices)
        self.batch_size = -(-batch_size // devices) * devices
        found = functools.partial(
            search, run.method, run.spec, steps=steps, restarts=restarts, lr=lr, prior=prior
        )

        def filled(state: Any, rng: Array, batch: Batch) -> Array:
            image, mask = batch["image"].astype(jnp.float32) / 127.5 - 1, batch["mask"]
            made = found(state, rng, {**batch, "image": image})
            made = to_uint8(blended(made, image, mask) if blend else made)
            return jnp.where(mask > 0.5, batch["image"], made)

        self._filled = self._layout.replicated(filled)

    def __call__(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        labels: np.ndarray | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> np.ndarray:
        """The images without holes.

        Image i is a function of the seed, i and itself, whatever the images beside it.

        Args:
          images: (B, S, S, C) uint8, of the run's size and channels; what is in the holes plays no
            part.
          masks: (B, S, S, 1), 1 = known, 0 = hole.
          labels: (B,) int, of a conditional run; None: of no known class.
          first: i of the first image.

        Returns:
          (B, S, S, C) uint8; what is known is as it was to the bit.

        Raises:
          UserError: images, masks or labels that are not as said; an image that is all hole.
        """
        self._check(images, masks, labels)
        batch = {
            "image": images,
            "mask": masks.astype(np.float32),
            "index": np.arange(first, first + len(images), dtype=np.int32),
        }
        if self._config.num_classes:
            batch["labels"] = self._tried(labels, batch["index"], seed)
        starts, parts, rng = range(0, len(images), self.batch_size), [], jax.random.key(seed)
        for start in tqdm(starts, "holes", delay=2, leave=False, disable=None):
            part = {name: x[start : start + self.batch_size] for name, x in batch.items()}
            placed = self._layout.place_whole(parallel.padded(part, self.batch_size))
            parts.append(np.asarray(self._filled(self._state, rng, placed)))
        return np.concatenate(parts)[: len(images)] if parts else images.copy()

    def _tried(self, labels: np.ndarray | None, index: np.ndarray, seed: int) -> np.ndarray:
        """(n, restarts) int32: the class of each start."""
        classes = self._config.num_classes
        if labels is not None:
            return np.repeat(np.asarray(labels, np.int32)[:, None], self._restarts, 1)
        first = [np.random.default_rng([seed, i]).integers(classes) for i in index]
        return np.add.outer(first, np.arange(self._restarts)).astype(np.int32) % classes

    def _check(self, images: np.ndarray, masks: np.ndarray, labels: np.ndarray | None) -> None:
        size, channels, classes = (
            self._config[k] for k in ("image_size", "channels", "num_classes")
        )
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, channels):
            has = "x".join(map(str, images.shape[1:]))
            raise UserError(
                f"Images of {has} ({images.dtype}): the run draws {size}x{size}x{channels}, so "
                "give 8-bit ones of that size."
            )
        if masks.shape != (*images.shape[:3], 1):
            raise UserError(
                f"Masks of shape {masks.shape} for images of shape {images.shape}: give one of "
                f"{size}x{size}x1 for each."
            )
        empty = np.flatnonzero(~(masks > 0.5).any((1, 2, 3)))
        if len(empty):
            raise UserError(f"Image {empty[0]} is all hole: leave some of it known.")
        if labels is None:
            return
        if not classes:
            raise UserError("The run is unconditional: leave out the labels.")
        if len(labels) != len(images) or not set(np.unique(labels)) <= set(range(classes)):
            raise UserError(
                f"Give a label from 0 to {classes - 1} for each of {len(images)} images."
            )


def search(
    method: Any,
    spec: Any,
    state: Any,
    rng: Array,
    batch: Batch,
    *,
    steps: int,
    restarts: int,
    lr: float,
    prior: float | None = None,
) -> Array:
    """The image that fits each one's known pixels best, see `Search`; pure.

    Args:
      batch: `image` (B, H, W, C) in [-1, 1], `mask` (B, H, W, 1) with 1 = known, `index` (B,)
        int32, by which and by `rng` the starts are drawn; `labels` (B, restarts) int32 of a
        conditional run.

    Returns:
      (B, H, W, C) float32, whole: nothing in it is of `image`.
    """
    image, weight = (_spread(x, restarts) for x in (batch["image"], context_weights(batch["mask"])))
    places = jnp.arange(restarts, dtype=jnp.int32)[None]
    tries = {"index": (batch["index"][:, None] * restarts + places).reshape(-1)}
    if "labels" in batch:
        tries["label"] = batch["labels"].reshape(-1)
    realism = getattr(method, "realism", None)
    scale = _PRIOR["realism" if realism else "normal"] if prior is None else prior

    def losses(z: Array) -> Array:
        made = method.decode(spec, state, z, tries)
        context = (weight * jnp.abs(made - image)).sum((1, 2, 3))
        if realism:
            return context - scale * realism(spec, state, made, tries)
        return context + scale * (z * z).sum(1) / 2

    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def step(_: int, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        z, opt = carry
        slope = within_reach(jax.grad(lambda z: losses(z).sum())(z), z)
        updates, opt = tx.update(slope, opt)
        return inside(z + updates), opt

    z = inside(method.latents(spec, rng, tries))
    z, _ = lax.fori_loop(0, steps, step, (z, tx.init(z)))
    best = losses(z).reshape(-1, restarts).argmin(1)
    z = z.reshape(len(best), restarts, -1)[jnp.arange(len(best)), best]
    if "labels" in batch:
        tries = {"label": jnp.take_along_axis(batch["labels"], best[:, None], 1)[:, 0]}
    return method.decode(spec, state, z, {**tries, "index": batch["index"]})


def context_weights(mask: Array) -> Array:
    """How much each known pixel tells of the hole (Yeh et al. 2017, their weighted context loss).

    The share of the hole in the 7x7 pixels around it, as far as they lie in the image; 0 in the
    hole itself, and of what is further away.

    Args:
      mask: (B, H, W, 1) float, 1 = known.

    Returns:
      the same shape, in [0, 1].
    """
    rows, columns = map(_band, mask.shape[1:3])
    missing = jnp.einsum("bhwc,ih,jw->bijc", 1 - mask, rows, columns)
    window = np.outer(rows.sum(1), columns.sum(1))
    return mask * missing / window.reshape(1, *mask.shape[1:3], 1)


def inside(z: Array) -> Array:
    """Latents (B, d), those beyond the sphere of radius sqrt(d) put on it."""
    square = jnp.sum(z * z, 1, keepdims=True)
    return z * jnp.minimum(1.0, jnp.sqrt(z.shape[1] / (square + 1e-12)))


def within_reach(slope: Array, z: Array) -> Array:
    """Gradients (B, d) at z, less what leads out of the sphere from a z that lies on it.

    Adam scales each number by itself: a step cut off by `inside` alone would end elsewhere than at
    the least loss on the sphere.
    """
    along, square = (jnp.sum(x * z, 1, keepdims=True) for x in (slope, z))
    out = (square > 0.9999 * z.shape[1]) & (along < 0)
    return slope - jnp.where(out, along / square, 0.0) * z


def blended(made: Array, image: Array, mask: Array, tolerance: float = 1e-4) -> Array:
    """What was made, put into the hole without a seam (Perez et al. 2003, section 2).

    Inside the hole it has the gradients of `made`, at its rim the values of `image`. What is added
    to `made` is then harmonic, the membrane through the difference at the rim, and is found by
    conjugate gradients; at the image's border nothing holds it.

    Args:
      made, image: (B, H, W, C) float.
      mask: (B, H, W, 1), 1 = known; some of each image is.
      tolerance: of the residual, as a share of that of the seam.

    Returns:
      (B, H, W, C): `image` where it is known; it may leave the range of both.
    """

    def one(made: Array, image: Array, known: Array) -> Array:
        hole = 1 - known
        seam = known * (image - made)
        system = functools.partial(cg, lambda u: hole * _laplacian(hole * u), tol=tolerance)
        membrane, _ = system(-hole * _laplacian(seam), maxiter=4 * sum(made.shape[:2]))
        return jnp.where(known > 0.5, image, made + membrane)

    return jax.vmap(one)(made, image, (mask > 0.5).astype(made.dtype))


def _band(size: int) -> np.ndarray:
    """(size, size) float32: 1 for places less than half a window apart."""
    places = np.arange(size)
    return (abs(np.subtract.outer(places, places)) <= _WINDOW // 2).astype(np.float32)


def _laplacian(u: Array) -> Array:
    """Minus the discrete Laplacian of (H, W, C): differences to the neighbours, summed."""
    found = jnp.zeros_like(u)
    for axis in (0, 1):
        steps = jnp.diff(u, axis=axis)
        none = [(0, 0)] * u.ndim
        before, after = ([*none[:axis], side, *none[axis + 1 :]] for side in ((1, 0), (0, 1)))
        found += jnp.pad(steps, before) - jnp.pad(steps, after)
    return found


def _spread(x: Array, n: int) -> Array:
    """(B, ...) -> (n * B, ...), each example n times."""
    return jnp.broadcast_to(x[:, None], (len(x), n, *x.shape[1:])).reshape(-1, *x.shape[1:])
