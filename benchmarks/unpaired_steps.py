"""Time of one step of CycleGAN, CUT and FastCUT, in turn, with the same networks.

Same sizes of networks, batches of `a` and `b`, Adam. CUT is timed with CycleGAN's
strided layers, and with the anti-aliased ones that were published for it.
"""

import argparse
import functools

import cyclegan_step
import harness
import step_time


def method_step(options: argparse.Namespace, name: str, fields: dict):
    """A method's step by its published defaults at the sizes asked for."""
    import jax

    from aigc_jax import config as configs
    from aigc_jax import methods

    method, config = methods.load(name), configs.default()
    config.update(method.defaults())
    config.channels, config.num_classes, config.image_size = 3, 0, options.image_size
    config.generator.width = config.adversary.discriminator.width = options.width
    config.generator.blocks = options.blocks
    config.ema.half_life = 0.0
    for field, value in fields.items():
        config.update_from_flattened_dict({field: value})
    spec = method.from_config(configs.finish(config))
    rng, batch = jax.random.key(0), jax.device_put(cyclegan_step.domains(options))
    state = jax.jit(functools.partial(method.init_state, spec))(rng, batch)
    step = functools.partial(method.train_step, spec)
    return step_time.compiled_step(step, state, batch, rng, each=True)


STRIDED = {"generator.resample": "transpose", "adversary.discriminator.antialias": False}
FAST = {"nce_weight": 10.0, "identity": False, "flip_equivariance": True}
SIDES = {
    "CycleGAN": ("cyclegan", {}),
    "CUT, strided": ("cut", STRIDED),
    "CUT": ("cut", {}),
    "FastCUT, strided": ("cut", STRIDED | FAST),
    "FastCUT": ("cut", FAST),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    options = argparse.Namespace(**vars(parser.parse_args()), channels=3, num_classes=0)
    workers = [
        harness.Worker(method_step, options, *side, threads=options.threads)
        for side in SIDES.values()
    ]
    times = harness.take_turns(workers, options.rounds, options.steps)
    for worker in workers:
        worker.stop()
    base = harness.summary(times[0])
    print(harness.machine("jax", "jaxlib"))
    rows = []
    for name, measured in zip(SIDES, times, strict=True):
        found = harness.summary(measured)
        ratios = base["median"] / found["median"], base["minimum"] / found["minimum"]
        rows.append((name, found["median"], found["minimum"], *ratios))
    print(harness.table(("step of", "median ms", "minimum ms", "cheaper by", "by minima"), rows))


if __name__ == "__main__":
    main()
