"""Mean field in a 7x7 window, 10 iterations, against the same in PyTorch by `unfold`.

    python benchmarks/mean_field.py [--train]

Kernels from a guide of 3 channels, normalised, then Q <- softmax(u - c K Q) with a full matrix of
compatibility. PyTorch's side lays each window's neighbours beside each other and multiplies by the
kernel, laid down once: what ConvCRF does. `--train` adds the gradients to logits and guide.
"""

import argparse
import time

import harness
import numpy as np

WINDOW, ITERATIONS, CHANNELS = 7, 10, 3
WEIGHTS, BANDWIDTHS = (3.0, 1.0), (3.0, 0.2, 1.0)


def arrays(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Logits and guide, NHWC."""
    rng = np.random.default_rng(0)
    size = options.batch, options.image_size, options.image_size
    unary = rng.normal(size=(*size, options.labels)).astype(np.float32)
    return unary, rng.uniform(size=(*size, CHANNELS)).astype(np.float32)


def ours(options: argparse.Namespace):
    """aigc_jax."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.layers.crf import MeanFieldCRF

    unary, guide = map(jnp.asarray, arrays(options))
    crf = MeanFieldCRF(WINDOW, ITERATIONS, WEIGHTS, BANDWIDTHS)
    variables = jax.jit(crf.init)(jax.random.key(0), unary, guide)

    def loss(unary, guide):
        return jnp.sum(crf.apply(variables, unary, guide)[..., 0])

    step = jax.jit(
        jax.grad(loss, (0, 1)) if options.train else jax.tree_util.Partial(crf.apply, variables)
    )
    started = time.perf_counter()
    out = jax.block_until_ready(step(unary, guide))
    facts = {"compile_s": time.perf_counter() - started, "out": np.asarray(jax.tree.leaves(out)[0])}
    return harness.timer(lambda: jax.block_until_ready(step(unary, guide)), lambda: None), facts


def torch(options: argparse.Namespace):
    """PyTorch."""
    import torch
    from torch.nn.functional import unfold

    torch.set_num_threads(options.threads)
    unary, guide = (torch.tensor(x).permute(0, 3, 1, 2).contiguous() for x in arrays(options))
    r, (b, labels, h, w) = WINDOW // 2, unary.shape
    near, alike, smooth = (1 / (2 * x**2) for x in BANDWIDTHS)
    steps = torch.arange(-r, r + 1.0)
    apart = (steps[:, None] ** 2 + steps**2).reshape(1, -1, 1)
    compatibility = 1 - torch.eye(labels)

    def neighbours(x):
        return unfold(x, WINDOW, padding=r).view(len(x), -1, WINDOW**2, h * w)

    def normalised(kernel):  # (B, 49, H W), the centre included
        scale = kernel.sum(1, keepdim=True).rsqrt()
        return kernel * scale * neighbours(scale.view(-1, 1, h, w))[:, 0]

    there = neighbours(torch.ones(1, 1, h, w))[:, 0]
    there_not_self = there.clone()
    there_not_self[:, WINDOW**2 // 2] = 0

    def couplings(guide):
        differences = (neighbours(guide) - guide.view(b, CHANNELS, 1, -1)).square().sum(1)
        bilateral = normalised(there * torch.exp(-near * apart - alike * differences))
        spatial = normalised(there * torch.exp(-smooth * apart))
        return (WEIGHTS[0] * bilateral + WEIGHTS[1] * spatial) * there_not_self

    def infer(unary, guide):
        kernel = couplings(guide)[:, None]
        q = unary.softmax(1)
        for _ in range(ITERATIONS):
            coupled = (neighbours(q) * kernel).sum(2)
            costs = (compatibility @ coupled).view(unary.shape)
            q = (unary - costs).softmax(1)
        return q

    def step():
        if not options.train:
            with torch.no_grad():
                return infer(unary, guide).permute(0, 2, 3, 1)
        leaves = unary.clone().requires_grad_(), guide.clone().requires_grad_()
        infer(*leaves)[:, 0].sum().backward()
        return leaves[0].grad.permute(0, 2, 3, 1)

    started = time.perf_counter()
    out = step().numpy()
    facts = {"compile_s": time.perf_counter() - started, "out": out}
    return harness.timer(step, lambda: None), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--train", action="store_true", help="gradients too")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    options = parser.parse_args()
    workers = [harness.Worker(side, options, threads=options.threads) for side in (ours, torch)]
    times = harness.take_turns(workers, options.rounds, options.steps)
    base, rows = harness.summary(times[1]), []
    for worker, each in zip(workers, times, strict=True):
        found = harness.summary(each)
        ratios = (found[name] / base[name] for name in ("median", "minimum"))
        rows.append((worker.name, *found.values(), *ratios, worker.facts["compile_s"]))
        worker.stop()
    first, second = (worker.facts["out"] for worker in workers)
    header = ("side", "median ms", "min ms", "median / torch", "min / torch", "first call s")
    print(harness.table(header, rows))
    print(f"largest difference: {np.abs(first - second).max():.1e}")
    print(harness.machine("jax", "torch"))


if __name__ == "__main__":
    main()
