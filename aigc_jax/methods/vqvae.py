"""The VQ-VAE (van den Oord et al. 2017), images to a grid of codes and back; with an adversary, the
first stage of VQGAN (Esser et al. 2021). New images come from `code_prior`, trained on the codes.

Models: `aigc_jax.models.vqvae`. Codebook: `aigc_jax.layers.codebook`. Adversary:
`aigc_jax.adversary`. Configs: `configs/cifar10_vqvae.py`, `cifar10_vqgan.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import adversary, optim
from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers import codebook
from aigc_jax.layers.codebook import Codebook
from aigc_jax.metrics.image_quality import psnr, ssim, ssim_border
from aigc_jax.metrics.spectrum import power_spectrum, sharpness
from aigc_jax.models.vqvae import Autoencoder, autoencoder
from aigc_jax.parallel import axis_size, pmean
from aigc_jax.types import Array, Batch, Metrics

_ERRORS = {
    "l2": lambda difference, variance: jnp.mean(difference**2) / variance,
    "l1": lambda difference, variance: jnp.mean(jnp.abs(difference)) / variance**0.5,
}


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32.
      variables: {"encoder": ..., "decoder": ...}, each {"params": ...}.
      codebook: the codes and their moving averages.
      opt: the optimizer's state.
      ema: moving average of the variables; None when it is off.
      adversary: the discriminator's state; None without one.
      frozen: {"perceptual": variables} where there is a perceptual term.
    """

    step: Array
    variables: Any
    codebook: Codebook
    opt: Any
    ema: Any
    adversary: Any
    frozen: Any


@dataclasses.dataclass(frozen=True)
class VQVAE:
    """The static half.

    Attributes:
      autoencoder: the networks.
      tx: optax transformation.
      size: K, of the codebook.
      decay: of the codebook's averages, per step.
      revive_below: the share of even use under which a code is replaced, see `codebook.update`.
      commitment: weight of the encoder's distance to its codes.
      reconstruction: "l2" or "l1".
      data_variance: of the pixels in [-1, 1], which the error is divided by.
      adversary: what sharpens the reconstructions, or None.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    autoencoder: Autoencoder
    tx: optax.GradientTransformation
    size: int = 512
    decay: float = 0.99
    revive_below: float = 0.05
    commitment: float = 0.25
    reconstruction: str = "l2"
    data_variance: float = 1.0
    adversary: Adversary | None = None
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> VQVAE:
    """The static half that a config describes. UserError for values that can't be."""
    name, section = config.reconstruction, config.codebook
    if name not in _ERRORS:
        raise UserError(f"config.reconstruction is {name!r}.{did_you_mean(name, _ERRORS)}")
    if section.size < 2 or not 0 <= section.decay < 1:
        raise UserError(
            f"config.codebook has size {section.size} and decay {section.decay}: take at least 2 "
            "codes and a decay in [0, 1)."
        )
    if config.data_variance <= 0 or section.commitment < 0 or not 0 <= section.revive_below < 1:
        raise UserError(
            f"config.data_variance is {config.data_variance}, codebook.commitment "
            f"{section.commitment}, codebook.revive_below {section.revive_below}: take one above "
            "0, one of at least 0, and one in [0, 1)."
        )
    return VQVAE(
        autoencoder=autoencoder(config, axis_name),
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        size=section.size,
        decay=section.decay,
        revive_below=section.revive_below,
        commitment=section.commitment,
        reconstruction=name,
        data_variance=config.data_variance,
        adversary=adversary.from_config(config, axis_name),
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(vqvae: VQVAE, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for the shape of `image` (B, H, W, C).
      frozen: {"perceptual": variables of a classifier} where the adversary has such a term.

    Raises:
      UserError: the decoder's images have another shape.
    """
    encoder_rng, decoder_rng, codebook_rng, adversary_rng = jax.random.split(rng, 4)
    image = batch["image"][:1]
    encoder, decoder = vqvae.autoencoder.encoder, vqvae.autoencoder.decoder
    z, encoder_variables = encoder.init_with_output(encoder_rng, image, train=False)
    decoded, decoder_variables = decoder.init_with_output(decoder_rng, z, train=False)
    if decoded.shape != image.shape:
        raise UserError(
            f"The decoder makes {decoded.shape[1]}x{decoded.shape[2]} images of "
            f"{image.shape[1]}x{image.shape[2]} ones: config.encoder and config.decoder must "
            "halve and double alike."
        )
    variables = {"encoder": encoder_variables, "decoder": decoder_variables}
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        codebook=codebook.init(codebook_rng, vqvae.size, z.shape[-1]),
        opt=vqvae.tx.init(_params(variables)),
        ema=jax.tree.map(jnp.copy, variables) if vqvae.ema_half_life else None,
        adversary=adversary.init(vqvae.adversary, adversary_rng, image),
        frozen={} if frozen is None else frozen,
    )


def train_step(vqvae: VQVAE, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update of the networks, the codebook and the discriminator.

    Args:
      batch: `image` (B, H, W, C) in [-1, 1].
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: loss, its reconstruction (in units of the data's variance) and
      commitment (squared distance to the codes, before its weight), the batch's perplexity and
      the share of codes it uses, how many codes were revived, PSNR in dB, the gradient's norm,
      and what the adversary tells.
    """
    rng, image = jax.random.fold_in(rng, state.step), batch["image"]
    networks, old = vqvae.autoencoder, state.variables
    z, encoder_pullback, encoder_stats = _run(networks.encoder, old["encoder"], image)
    fresh = codebook.draw(z, vqvae.size, rng, vqvae.axis_name)
    book = codebook.start(state.codebook, fresh)
    codes = codebook.nearest(book, z)
    quantized = codebook.lookup(book, codes)
    decoded, decoder_pullback, decoder_stats = _run(networks.decoder, old["decoder"], quantized)

    error = functools.partial(_ERRORS[vqvae.reconstruction], variance=vqvae.data_variance)
    reconstruction, gradient = jax.value_and_grad(lambda x: error(x - image))(decoded)
    gradient, judge, judge_metrics = _sharpen(vqvae, state, image, decoded, gradient)
    commitment, pull = jax.value_and_grad(lambda z: jnp.mean((quantized - z) ** 2))(z)
    decoder_grads, z_gradient = decoder_pullback(gradient)
    # Straight through: the gradient in the codes is taken for that in the vectors (section 3.2).
    encoder_grads, _ = encoder_pullback(z_gradient + vqvae.commitment * pull)
    grads = pmean({"encoder": encoder_grads, "decoder": decoder_grads}, vqvae.axis_name)

    params, opt = optim.update(vqvae.tx, grads, state.opt, _params(old))
    stats = {"encoder": encoder_stats, "decoder": decoder_stats}
    new = {name: {**old[name], **stats[name], "params": params[name]} for name in old}
    averages = dict(decay=vqvae.decay, revive_below=vqvae.revive_below, axis_name=vqvae.axis_name)
    book, revived = codebook.update(book, z, codes, fresh, **averages)
    metrics = {
        "loss": reconstruction + vqvae.commitment * commitment,
        "reconstruction": reconstruction,
        "commitment": commitment,
        "psnr": psnr(image, jnp.clip(decoded, -1, 1)).mean(),
    }
    counts = codebook.histogram(codes, vqvae.size, vqvae.axis_name)
    metrics = pmean(metrics, vqvae.axis_name) | {
        "perplexity": codebook.perplexity(counts),
        "codebook_use": jnp.mean(counts > 0),
        "revived": revived.astype(jnp.float32),
        "grad_norm": optax.tree.norm(grads),
    }
    ema = _averaged(vqvae, state, new, len(image))
    state = State(state.step + 1, new, book, opt, ema, judge, state.frozen)
    return state, metrics | judge_metrics


def weights(state: State) -> dict[str, Any]:
    """What using the networks takes: {"encoder", "decoder"} averaged variables, {"codebook"}."""
    variables = state.variables if state.ema is None else state.ema
    return {**variables, "codebook": state.codebook}


def encode(vqvae: VQVAE, state: State, batch: Batch) -> Array:
    """The codes (B, h, w) int32 of `image` (B, H, W, C) in [-1, 1]."""
    return vqvae.autoencoder.to_codes(weights(state), batch["image"])


def decode(vqvae: VQVAE, state: State, codes: Array, batch: Batch) -> Array:
    """The images (B, H, W, C) in [-1, 1] of codes (B, h, w) int32."""
    return vqvae.autoencoder.to_images(weights(state), codes)


def preview(vqvae: VQVAE, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch: the batch's images, each with its reconstruction at its right."""
    image = batch["image"]
    decoded = decode(vqvae, state, encode(vqvae, state, batch), batch)
    columns = min(4, len(image))
    pairs = jnp.stack([image, decoded], 1)[: len(image) // columns * columns]
    return {"reconstructions": pairs.reshape(-1, 2 * columns, *image.shape[1:])}


def diagnose(step: int, metrics: dict[str, float]) -> str | None:
    """A line to warn of a codebook that has collapsed, or of gradients that explode; or None."""
    if step < 300:
        return None
    if metrics["perplexity"] < 2 or metrics["codebook_use"] < 0.03:
        return (
            f"the codebook has collapsed: a batch uses {metrics['codebook_use']:.0%} of the codes, "
            f"with perplexity {metrics['perplexity']:.1f}. Raise config.codebook.revive_below or "
            "lower config.optimizer.lr."
        )
    if metrics["grad_norm"] > 1e3:
        return (
            f"grad_norm is {metrics['grad_norm']:.3g}: gradients explode. "
            "Lower config.optimizer.lr."
        )
    return None


def eval_step(vqvae: VQVAE, state: State, batch: Batch, rng: Array) -> dict[str, tuple]:
    """(sum, count) of what `scores` reads, over the examples where `valid` (B,) is 1."""
    codes = encode(vqvae, state, batch)
    image, decoded = batch["image"], decode(vqvae, state, codes, batch)
    found = {
        "psnr": psnr(image, decoded),
        "ssim": ssim(image, decoded, border=ssim_border(image.shape[1])),
        "real_power": power_spectrum(image),
        "fake_power": power_spectrum(decoded),
        "histogram": jax.vmap(lambda codes: codebook.histogram(codes, vqvae.size))(codes),
    }
    valid = batch["valid"]
    return {name: (jnp.einsum("b,b...->...", valid, x), valid.sum()) for name, x in found.items()}


def scores(vqvae: VQVAE, means: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Records of a test set: quality, sharpness, perplexity, the share of codes it uses at all."""
    counts = means["histogram"]
    return {
        "psnr": {"value": float(means["psnr"])},
        "ssim": {"value": float(means["ssim"])},
        "sharpness": {"value": float(sharpness(means["real_power"], means["fake_power"]))},
        "perplexity": {"value": float(codebook.perplexity(counts)), "of": len(counts)},
        "codebook_use": {"value": float(np.mean(counts > 0))},
    }


def _params(variables: Any) -> Any:
    return {name: of["params"] for name, of in variables.items()}


def _run(module: nn.Module, variables: Any, x: Array) -> tuple[Array, Callable, Any]:
    """The output in training, its pullback to parameters and x, and new statistics, if any."""

    def forward(params: Any, x: Array) -> tuple[Array, Any]:
        return module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])

    return jax.vjp(forward, variables["params"], x, has_aux=True)


def _averaged(vqvae: VQVAE, state: State, variables: Any, batch_size: int) -> Any:
    total = batch_size * axis_size(vqvae.axis_name)
    rates = vqvae.ema_half_life, vqvae.ema_ramp_up
    return optim.averaged(state.ema, variables, state.step, total, *rates)


def _sharpen(
    vqvae: VQVAE, state: State, real: Array, fake: Array, gradient: Array
) -> tuple[Array, Any, Metrics]:
    """The gradient with the adversary's share, and the adversary after its own update."""
    if vqvae.adversary is None:
        return gradient, None, {}
    args = (vqvae.adversary, state.adversary)
    gradient, ours = adversary.sharpen(*args, state.frozen, real, fake, gradient, state.step)
    new, theirs = adversary.update(*args, real, fake, state.step)
    return gradient, new, ours | theirs
