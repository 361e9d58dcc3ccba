"""Time of one CycleGAN step: ours and PyTorch's, in turn on one machine.

Both translate in both directions and back, take identity losses, update both generators, draw from
both pools and update both discriminators; ours also measures its gradients and correlations. Each
side lives in a process of its own, under the same allocator setting and core count. Figures are
milliseconds a step.
"""

import argparse
import functools
import time

import harness
import step_time


def domains(options: argparse.Namespace) -> dict:
    """A batch of noise of both domains, (B, S, S, C) each."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (options.batch, options.image_size, options.image_size, options.channels)
    return {name: rng.uniform(-1, 1, shape).astype("float32") for name in "ab"}


def ours(options: argparse.Namespace):
    """aigc_jax's step."""
    import jax
    import optax

    from aigc_jax.adversary import Adversary
    from aigc_jax.losses import adversarial
    from aigc_jax.methods import cyclegan as method
    from aigc_jax.models import patchgan, resnet_translator

    adam = optax.adam(2e-4, b1=0.5)
    gan = method.CycleGAN(
        generator=resnet_translator.Generator(options.channels, options.width, options.blocks),
        g_tx=adam,
        adversary=Adversary(
            discriminator=patchgan.Discriminator(options.width, norm="instance"),
            tx=adam,
            loss=adversarial.get("least_squares"),
            weight=2.0,
            adaptive=False,
        ),
    )
    rng, batch = jax.random.key(0), jax.device_put(domains(options))
    state = jax.jit(functools.partial(method.init_state, gan))(rng, batch)
    parameters = sum(x.size for x in jax.tree.leaves(state.g))
    step = functools.partial(method.train_step, gan)
    run, facts = step_time.compiled_step(step, state, batch, rng, each=True)
    return run, facts | {"parameters": parameters}


def torch(options: argparse.Namespace):
    """PyTorch eager, channels-last."""
    import torch
    from twin_torch_cyclegan import TorchCycleGAN

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gan = TorchCycleGAN(options.channels, options.width, options.blocks)
    # Channels-last: the memory of NHWC, seen as NCHW.
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in domains(options).values())
    started = time.perf_counter()
    gan.step(a, b)
    facts = {"compile_s": time.perf_counter() - started}
    facts["parameters"] = sum(p.numel() for p in gan.g.parameters())
    return harness.timer(lambda: gan.step(a, b), lambda: None), facts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="of all four networks")
    parser.add_argument("--blocks", type=int, default=9, help="of each generator")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    return argparse.Namespace(**vars(parser.parse_args()), channels=3)


def main() -> None:
    options = parse_arguments()
    size = options.image_size
    print(f"CycleGAN {size}x{size}x3, batch {options.batch}, {options.blocks} blocks, cpu")
    print(harness.machine("jax", "jaxlib", "flax", "torch") + "\n")
    print(harness.beside_torch(ours, torch, options, "pairs", "parameters of G"))


if __name__ == "__main__":
    main()
