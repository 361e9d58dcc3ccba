"""Time of one DCGAN training step: ours, PyTorch's, and naive Flax's, in turn on one machine.

Each side lives in a process of its own, under the same allocator setting and core count. Figures
are milliseconds a step, medians and minima over all turns; with `--device gpu` images/s.
"""

import argparse
import functools
import json
import time

import harness

SIDES = ("ours", "torch", "torch-compiled", "naive")


def jax_batch(options: argparse.Namespace, leading: tuple[int, ...] = ()):
    """A batch of noise images on the device, stacked over `leading`."""
    import jax
    import numpy as np

    rng, shape = np.random.default_rng(0), (*leading, options.batch)
    image_shape = (*shape, options.image_size, options.image_size, options.channels)
    batch = {
        "image": rng.uniform(-1, 1, image_shape).astype("float32"),
        "index": np.broadcast_to(np.arange(options.batch, dtype="int32"), shape),
    }
    if options.num_classes:
        batch["label"] = rng.integers(options.num_classes, size=shape).astype("int32")
    return jax.device_put(batch)


def compiled_step(train_step, state, batch, rng, each: bool):
    """`(run, facts)` of a jitted step with a donated state; the facts tell its compile time."""
    import jax

    started = time.perf_counter()
    lowered = jax.jit(train_step, donate_argnums=0).lower(state, batch, rng)
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts = {"trace_s": traced - started, "compile_s": time.perf_counter() - traced}
    holder = {"state": state}

    def step():
        holder["state"], holder["metrics"] = compiled(holder["state"], batch, rng)

    return harness.timer(step, lambda: jax.block_until_ready(holder), each), facts


def our_gan(options: argparse.Namespace, axis_name: str | None = None):
    """The mission's GAN in this library."""
    import jax.numpy as jnp
    import optax

    from aigc_jax.methods.gan import GAN
    from aigc_jax.models import dcgan

    common = {
        "image_size": options.image_size,
        "num_classes": options.num_classes,
        "dtype": jnp.dtype(options.dtype),
        "axis_name": axis_name,
    }
    return GAN(
        generator=dcgan.Generator(channels=options.channels, **common),
        discriminator=dcgan.Discriminator(**common),
        g_tx=optax.adam(2e-4, b1=0.5),
        d_tx=optax.adam(2e-4, b1=0.5),
        num_classes=options.num_classes,
        axis_name=axis_name,
    )


def ours(options: argparse.Namespace):
    """aigc_jax's step; `--steps-per-dispatch` of them in one `lax.scan`."""
    import jax

    from aigc_jax import parallel
    from aigc_jax.methods import gan as method

    gan, rng = our_gan(options), jax.random.key(0)
    step = functools.partial(method.train_step, gan)
    state = jax.jit(functools.partial(method.init_state, gan))(rng, jax_batch(options))
    count = options.steps_per_dispatch
    batch = jax_batch(options, (count,) if count > 1 else ())
    step = parallel.scan_steps(step) if count > 1 else step
    return compiled_step(step, state, batch, rng, options.each)


def naive(options: argparse.Namespace):
    """The step in plain Flax; not class-conditional."""
    import jax
    import jax.numpy as jnp
    import twin_flax

    rng, dtype = jax.random.key(0), jnp.dtype(options.dtype)
    state = twin_flax.init_state(rng, options.image_size, options.channels, dtype=dtype)
    return compiled_step(twin_flax.train_step, state, jax_batch(options), rng, options.each)


def torch(options: argparse.Namespace, compile: bool = False):
    """PyTorch eager."""
    import numpy as np
    import torch
    import twin_torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if options.device == "gpu" else "cpu"
    gan = twin_torch.TorchGAN(
        options.image_size, options.channels, options.num_classes, device=device, compile=compile
    )
    shape = (options.batch, options.channels, options.image_size, options.image_size)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    images = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
    labels = torch.arange(options.batch, device=device) % max(options.num_classes, 1)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    started = time.perf_counter()
    gan.step(images, labels)
    wait()
    facts = {"compile_s": time.perf_counter() - started}
    return harness.timer(lambda: gan.step(images, labels), wait, options.each), facts


def torch_compiled(options: argparse.Namespace):
    """PyTorch with both networks under torch.compile."""
    return torch(options, compile=True)


MAKE = dict(zip(SIDES, (ours, torch, torch_compiled, naive), strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, help="default 64; 256 on a GPU")
    parser.add_argument("--image-size", type=int, help="default 32; 64 on a GPU")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--num-classes", type=int, default=0, help="0: unconditional")
    parser.add_argument("--dtype", help="of ours and naive; default float32; bfloat16 on a GPU")
    parser.add_argument("--steps-per-dispatch", type=int, help="of ours; default 1; 8 on a GPU")
    parser.add_argument("--threads", type=int, help="cores a side may use; default 2; all on a GPU")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default all of the device")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--json", action="store_true", help="print JSON, all times in it")
    options = with_device_defaults(parser.parse_args())
    if options.num_classes and "naive" in options.sides:
        parser.error("the naive side takes no classes: choose --sides ours torch")
    return options


def with_device_defaults(options: argparse.Namespace) -> argparse.Namespace:
    gpu = options.device == "gpu"
    defaults = {
        "batch": 256 if gpu else 64,
        "image_size": 64 if gpu else 32,
        "dtype": "bfloat16" if gpu else "float32",
        "steps_per_dispatch": 8 if gpu else 1,
        "threads": 4096 if gpu else 2,
        "each": not gpu,  # time every step, or means of steps in flight
        "sides": list(SIDES) if gpu else ["ours", "torch", "naive"],
    }
    given = {name: value for name, value in vars(options).items() if value is not None}
    return argparse.Namespace(**(defaults | given))


def main() -> None:
    options = parse_arguments()
    workers = [
        harness.Worker(MAKE[side], options, threads=options.threads) for side in options.sides
    ]
    times = harness.take_turns(workers, options.rounds, options.steps)
    per_call = {"ours": options.steps_per_dispatch}
    times = {
        side: [t / per_call.get(side, 1) for t in side_times]
        for side, side_times in zip(options.sides, times, strict=True)
    }
    report(options, times, [worker.facts for worker in workers])
    for worker in workers:
        worker.stop()


def report(options: argparse.Namespace, times: dict[str, list[float]], facts: list[dict]) -> None:
    """Prints the table, or with `--json` everything."""
    machine = harness.machine("jax", "jaxlib", "flax", "torch")
    if options.json:
        print(
            json.dumps({"machine": machine, "options": vars(options), "ms": times, "facts": facts})
        )
        return
    size = options.image_size
    print(
        f"DCGAN {size}x{size}x{options.channels}, batch {options.batch}, {options.device}, "
        f"classes {options.num_classes}\n{machine}\n"
    )
    summaries = {side: harness.summary(t) for side, t in times.items()}
    base = summaries.get("torch", next(iter(summaries.values())))
    rows = [
        (
            side,
            s["median"],
            s["minimum"],
            s["median"] / base["median"],
            s["minimum"] / base["minimum"],
            options.batch / s["median"] * 1e3,
            fact["compile_s"],
        )
        for (side, s), fact in zip(summaries.items(), facts, strict=True)
    ]
    against = "torch" if "torch" in summaries else next(iter(summaries))
    header = (
        "side",
        "median ms",
        "min ms",
        f"median / {against}",
        f"min / {against}",
        "images/s",
        "compile s",
    )
    print(harness.table(header, rows))


if __name__ == "__main__":
    main()
