"""The TPU compiler's own estimate of a DCGAN step, ours against naive Flax's; needs no TPU.

`pip install libtpu` brings the compiler. Its cost model counts cycles a chip, deterministically;
it leaves out the host and what overlaps badly, so it compares forms and promises no time.
"""

import argparse
import functools
import importlib.util
import os
import re
import sys

import harness


def compile_for(layout, train_step, init_state, options: argparse.Namespace):
    """`train_step` compiled for the devices of `layout`, from shapes alone."""
    import jax

    rng = jax.eval_shape(lambda: jax.random.key(0))
    devices = len(layout.devices)
    leading = (devices, options.batch // devices) if layout.mode == "pmap" else (options.batch,)
    state = jax.eval_shape(init_state, rng, batch_shapes((2,), options.image_size))
    batch = batch_shapes(leading, options.image_size)
    if layout.mode != "pmap":
        state, rng = place((state, rng), layout.sharding())
        batch = place(batch, layout.sharding("data"))
    return layout.compile(train_step, state).lower(state, batch, rng).compile()


def batch_shapes(leading: tuple[int, ...], size: int) -> dict:
    """The shapes of a batch of RGB images."""
    import jax
    import jax.numpy as jnp

    image = jax.ShapeDtypeStruct((*leading, size, size, 3), jnp.float32)
    return {"image": image, "index": jax.ShapeDtypeStruct(leading, jnp.int32)}


def place(shapes, sharding):
    """Shapes with a sharding each."""
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def ours(layout, options: argparse.Namespace):
    """`(train_step, init_state)` of aigc_jax."""
    from step_time import our_gan

    from aigc_jax.methods import gan as method

    gan = our_gan(options, layout.axis_name)
    return functools.partial(method.train_step, gan), functools.partial(method.init_state, gan)


def naive(layout, options: argparse.Namespace):
    """`(train_step, init_state)` of plain Flax."""
    import jax.numpy as jnp
    import twin_flax

    def init_state(rng, batch):
        del batch
        dtype = jnp.dtype(options.dtype)
        return twin_flax.init_state(
            rng, options.image_size, dtype=dtype, axis_name=layout.axis_name
        )

    return functools.partial(twin_flax.train_step, axis_name=layout.axis_name), init_state


def cycles_by_op(compiled) -> list[tuple[int, str]]:
    """(estimated cycles, op name) of every op of the program, the largest first."""
    ops = []
    for line in compiled.as_text().splitlines():
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            name = re.search(r'op_name="([^"]*)"', line)
            ops.append((int(cycles[1]), name[1] if name else line.split("=")[0].strip()))
    return sorted(ops, reverse=True)


def memory_mib(compiled) -> float:
    """What the program holds of a chip's memory at once."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (held - memory.alias_size_in_bytes) / 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x4", help="such as v4:2x2x1, v6e:2x4")
    parser.add_argument("--batch", type=int, default=2048, help="over all chips")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sides", nargs="+", choices=("ours", "naive"), default=["naive", "ours"])
    parser.add_argument("--modes", nargs="+", choices=("jit", "pmap"), default=["jit", "pmap"])
    parser.add_argument("--top", type=int, default=5, help="how many ops to list")
    return parser.parse_args(namespace=argparse.Namespace(channels=3, num_classes=0))


def main() -> None:
    options = parse_arguments()
    if not importlib.util.find_spec("libtpu"):
        sys.exit("The TPU compiler isn't installed: pip install libtpu")
    settings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.update(settings, JAX_PLATFORMS="cpu")  # before jax is imported
    from jax.experimental import topologies

    from aigc_jax import parallel

    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    rows, lists = [], []
    for mode in options.modes:
        layout, totals = parallel.layout(mode, devices), {}
        for side in options.sides:
            compiled = compile_for(
                layout, *{"ours": ours, "naive": naive}[side](layout, options), options
            )
            ops = cycles_by_op(compiled)
            totals[side] = sum(cycles for cycles, _ in ops)
            ratio = totals[side] / next(iter(totals.values()))
            rows.append((side, mode, f"{totals[side]:,}", memory_mib(compiled), ratio))
            top = [(f"{cycles:,}", name) for cycles, name in ops[: options.top]]
            lists.append(f"{side}, {mode}:\n" + harness.table(("cycles", "op"), top))
    print(
        f"DCGAN {options.image_size}x{options.image_size}, {options.dtype}, batch {options.batch}"
    )
    print(f"{options.topology}, {harness.machine('jax', 'jaxlib', 'libtpu', 'flax')}\n")
    print(
        harness.table(
            ("side", "mode", "cycles a chip", "MiB a chip", f"/ {options.sides[0]}"), rows
        )
    )
    print("\n" + "\n\n".join(lists))


if __name__ == "__main__":
    main()
