"""Time of one training step of the convolutional VAE: ours and PyTorch's, in turn on one machine.

Both draw binary images and latents, take the gradient of the ELBO, an Adam step and a moving
average; ours also measures its gradient's norm and the units in use. Each side lives in a process
of its own, under the same allocator setting and core count. Figures are milliseconds a step.
"""

import argparse
import functools
import time

import harness
import step_time

WIDTH, LATENT_DIM, HALF_LIFE = 32, 64, 200_000.0


def ours(options: argparse.Namespace):
    """aigc_jax's step."""
    import jax
    import optax

    from aigc_jax.losses import likelihood
    from aigc_jax.methods import vae as method
    from aigc_jax.models import vae_resnet

    networks = {"latent_dim": LATENT_DIM, "width": WIDTH}
    vae = method.VAE(
        encoder=vae_resnet.Encoder(**networks),
        decoder=vae_resnet.Decoder(image_size=options.image_size, **networks),
        likelihood=likelihood.Bernoulli(options.channels),
        tx=optax.adam(1e-3),
        ema_half_life=HALF_LIFE,
    )
    rng, batch = jax.random.key(0), step_time.jax_batch(options)
    state = jax.jit(functools.partial(method.init_state, vae))(rng, batch)
    parameters = sum(x.size for x in jax.tree.leaves(state.variables))
    step = functools.partial(method.train_step, vae)
    run, facts = step_time.compiled_step(step, state, batch, rng, each=True)
    return run, facts | {"parameters": parameters}


def torch(options: argparse.Namespace):
    """PyTorch eager, channels-last."""
    import numpy as np
    import torch
    from twin_torch_vae import TorchVAE

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae = TorchVAE(options.image_size, options.channels, LATENT_DIM, WIDTH, HALF_LIFE)
    shape = (options.batch, options.channels, options.image_size, options.image_size)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    images = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    vae.step(images)
    facts = {"compile_s": time.perf_counter() - started}
    facts["parameters"] = sum(p.numel() for p in vae.net.parameters())
    return harness.timer(lambda: vae.step(images), lambda: None), facts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    return argparse.Namespace(**vars(parser.parse_args()), channels=1, num_classes=0)


def main() -> None:
    options = parse_arguments()
    print(f"VAE {options.image_size}x{options.image_size}x1, batch {options.batch}, cpu")
    print(harness.machine("jax", "jaxlib", "flax", "torch") + "\n")
    print(harness.beside_torch(ours, torch, options, "images", "parameters"))


if __name__ == "__main__":
    main()
