"""What a GAN's step holds of memory, with blocks computed again for the gradient and without.

    python benchmarks/gan_memory.py [CONFIG] [--batch 64 ...] [--image-size 32]

Compiles the step of a config for this machine's first device, from shapes alone, and asks the
compiler; nothing is trained. On a GPU the last column says whether it fits.
"""

import argparse
import functools

import harness


def held_mib(config) -> float:
    """MiB at once, the state and the batch included."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.methods import gan as method

    gan = method.from_config(config)
    n, size = config.batch_size * config.d_steps, config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((n, size, size, config.channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
        "index": jax.ShapeDtypeStruct((n,), jnp.int32),
    }
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(method.init_state, gan), rng, batch)
    step = jax.jit(functools.partial(method.train_step, gan), donate_argnums=0)
    memory = step.lower(state, batch, rng).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (held - memory.alias_size_in_bytes) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="cifar10_sngan")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    import jax

    from aigc_jax import config as configs

    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    rows = []
    for batch in options.batch:
        for remat, parts in ((False, 1), (True, 1), (False, 4)):
            config = configs.load(options.config)
            config.batch_size, config.image_size = batch, options.image_size
            config.dtype, config.remat, config.accumulate = options.dtype, remat, parts
            config.channels, config.num_classes, config.d_steps = 3, 10, 1
            held = held_mib(config)
            fits = "" if limit is None else str(held * 2**20 < limit)
            rows.append((batch, remat, parts, f"{held:,.0f}", fits))
    head = "batch", "remat", "accumulate", "MiB", "fits"
    print(f"{options.config}, {options.image_size} pixels, {options.dtype}, one update of D")
    print(harness.machine("jax", "jaxlib", "flax") + "\n")
    print(harness.table(head, rows))


if __name__ == "__main__":
    main()
