"""Time of one training step of DnCNN: ours and PyTorch's, in turn on one machine.

Both take the gradient of the squared error and an Adam step, on patches that are noisy already;
ours also measures its gradient. Each side lives in a process of its own, under the same allocator
setting and core count. Figures are milliseconds a step.
"""

import argparse
import functools
import time

import harness
import step_time


def patches(options: argparse.Namespace) -> dict:
    """A batch of patches and the same with noise, (B, S, S, 1) each."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (options.batch, options.image_size, options.image_size, 1)
    target = rng.uniform(-1, 1, shape).astype("float32")
    noise = rng.normal(0, 2 * 25 / 255, shape).astype("float32")
    return {"source": target + noise, "target": target}


def ours(options: argparse.Namespace):
    """aigc_jax's step."""
    import jax
    import optax

    from aigc_jax.methods import restoration as method
    from aigc_jax.models import dncnn

    spec = method.Restoration(
        model=dncnn.Restorer(1, options.depth, options.width, shuffle=options.shuffle),
        tx=optax.adam(1e-3),
    )
    rng, batch = jax.random.key(0), jax.device_put(patches(options))
    state = jax.jit(functools.partial(method.init_state, spec))(rng, batch)
    parameters = sum(x.size for x in jax.tree.leaves(state.model["params"]))
    step = functools.partial(method.train_step, spec)
    run, facts = step_time.compiled_step(step, state, batch, rng, each=True)
    return run, facts | {"parameters": parameters}


def torch(options: argparse.Namespace):
    """PyTorch eager, channels-last."""
    import torch
    from twin_torch_dncnn import TorchDnCNN

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    twin = TorchDnCNN(1, options.depth, options.width)
    # Channels-last: the memory of NHWC, seen as NCHW.
    arrays = patches(options).values()
    source, target = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in arrays)
    started = time.perf_counter()
    twin.step(source, target)
    facts = {"compile_s": time.perf_counter() - started}
    facts["parameters"] = sum(p.numel() for p in twin.net.parameters())
    return harness.timer(lambda: twin.step(source, target), lambda: None), facts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=40)
    parser.add_argument("--depth", type=int, default=17)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--shuffle", type=int, default=1, help="of ours alone; 2: half the size")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    size = options.image_size
    print(f"DnCNN {size}x{size}x1, batch {options.batch}, depth {options.depth}, cpu")
    print(harness.machine("jax", "jaxlib", "flax", "torch") + "\n")
    print(harness.beside_torch(ours, torch, options, "patches", "parameters"))


if __name__ == "__main__":
    main()
