"""What augmentation costs: DiffAugment and ADA in the training step, a list of them in tf.data.

    python benchmarks/augment_cost.py            # both parts, CPU
    python benchmarks/augment_cost.py step --device gpu

step: a D+G step of the class-conditional DCGAN, 32x32, with what its discriminator sees augmented
by nothing, DiffAugment's three policies, and ADA at probability 0.5. stream: images a second of one
list of operations (rotate, flip, crop-resize, colours) on 32x32 images in batches: this library's
in tf.data, the same in a jitted JAX function, and albumentations (or torchvision) image by image in
a DataLoader with as many processes as cores, as they are used.
"""

import argparse
import functools
import multiprocessing

import harness
import step_time

OPS = "rotate(15),flip,crop(0.8),color(0.2)"
POLICIES = {"nothing": (), "DiffAugment": ("color", "translation", "cutout"), "ADA": ("ada",)}


def step(name: str, options: argparse.Namespace):
    """A training step whose discriminator sees what `name` says."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from aigc_jax.methods import gan as method

    gan = dataclasses.replace(step_time.our_gan(options), augment=POLICIES[name])
    rng = jax.random.key(0)
    state = jax.jit(functools.partial(method.init_state, gan))(rng, step_time.jax_batch(options))
    if name == "ADA":
        state = state.replace(extras=state.extras | {"ada_p": jnp.float32(0.5)})
    one = functools.partial(method.train_step, gan)
    return step_time.compiled_step(one, state, step_time.jax_batch(options), rng, True)


def tf_data(options: argparse.Namespace):
    """This library's pipeline: a step is a batch."""
    import numpy as np

    from aigc_jax.data import pipeline, tasks
    from aigc_jax.data.dataset import Dataset

    images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    data = Dataset("noise", len(images), 32, 3, images=images)
    batches = pipeline.batches(data, tasks.generate, batch_size=256, seed=0, augment=OPS)
    return harness.timer(lambda: next(batches), lambda: None, each=False), {}


def jitted(options: argparse.Namespace):
    """The same inside a compiled step."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.augment import augment, parse

    chain = parse(OPS)
    apply = jax.jit(
        lambda x, key: augment(chain, {"image": x}, jax.random.split(key, 256))["image"]
    )
    images = jax.random.uniform(jax.random.key(0), (256, 32, 32, 3), jnp.float32, -1, 1)
    holder = {"key": jax.random.key(1)}

    def run():
        holder["key"] = jax.random.fold_in(holder["key"], 1)
        holder["image"] = apply(images, holder["key"])

    run()
    return harness.timer(run, lambda: jax.block_until_ready(holder["image"]), each=False), {}


def loader(images, change, options: argparse.Namespace):
    """Batches of `change(image)`, image by image, in as many processes as cores."""
    import torch

    class Images(torch.utils.data.Dataset):
        __len__ = lambda self: 1 << 24  # noqa: E731
        __getitem__ = lambda self, i: change(images[i % len(images)])  # noqa: E731

    torch.set_num_threads(1)
    # The harness's workers are daemons, which may have no children.
    multiprocessing.current_process()._config["daemon"] = False
    batches = iter(
        torch.utils.data.DataLoader(
            Images(), 256, num_workers=options.threads, multiprocessing_context="fork"
        )
    )
    return harness.timer(lambda: next(batches), lambda: None, each=False), {}


def albumentations(options: argparse.Namespace):
    """albumentations, on NumPy arrays, by OpenCV."""
    import albumentations as alb
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    mirrored = {"border_mode": cv2.BORDER_REFLECT_101}
    change = alb.Compose([
        alb.Affine(rotate=(-15, 15), p=1, **mirrored),
        alb.HorizontalFlip(),
        alb.RandomResizedCrop((32, 32), scale=(0.64, 1), ratio=(1, 1), p=1),
        alb.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (0, 0), p=1),
        alb.Normalize((0.5,) * 3, (0.5,) * 3),
    ])  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    return loader(images, lambda image: change(image=image)["image"], options)


def torchvision(options: argparse.Namespace):
    """torchvision's v2 transforms, on tensors."""
    import torch
    from torchvision.transforms import v2

    change = v2.Compose([
        v2.RandomRotation(15, v2.InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(),
        v2.RandomResizedCrop(32, (0.64, 1), (1, 1), antialias=False),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    return loader(images, change, options)


def measure(workers: dict[str, harness.Worker], rounds: int, steps: int) -> dict[str, list[float]]:
    times = harness.take_turns(list(workers.values()), rounds, steps)
    for worker in workers.values():
        worker.stop()
    return dict(zip(workers, times, strict=True))


def of_step(options: argparse.Namespace) -> None:
    workers = {
        name: harness.Worker(step, name, options, threads=options.threads) for name in POLICIES
    }
    times = measure(workers, options.rounds, options.steps)
    base, rows = harness.summary(times["nothing"]), []
    for name, each in times.items():
        found = harness.summary(each)
        more = (f"{100 * (found[k] / base[k] - 1):+.1f}%" for k in ("median", "minimum"))
        rows.append((name, found["median"], found["minimum"], *more))
    print(harness.table(("D sees", "median ms", "min ms", "median more", "min more"), rows))


def of_stream(options: argparse.Namespace) -> None:
    workers = {}
    makes = {make.__name__: make for make in (tf_data, jitted, albumentations, torchvision)}
    for name in options.sides:
        workers[name] = harness.Worker(makes[name], options, threads=options.threads)
    times = measure(workers, options.rounds, 20)
    rates = {name: 256e3 / harness.summary(each)["median"] for name, each in times.items()}
    last = options.sides[-1]
    rows = [(name, rate, rate / rates[last]) for name, rate in rates.items()]
    print(f"{OPS}\n\n{harness.table(('side', 'images/s', f'/ {last}'), rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="step, stream or both")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--sides", nargs="+", default=["tf_data", "jitted", "albumentations"],
        help="of stream: tf_data, jitted, albumentations, torchvision; the last is the measure",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="training steps a turn")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    options = parser.parse_args()
    gpu = options.device == "gpu"
    model = {
        "batch": 256 if gpu else 64, "image_size": 64 if gpu else 32, "channels": 3,
        "num_classes": 10, "dtype": "bfloat16" if gpu else "float32",
    }  # fmt: skip
    parts = {"step": of_step, "stream": of_stream}
    for name in options.parts or parts:
        if name not in parts:
            parser.error(f"no such part: {name}; there are {', '.join(parts)}")
        parts[name](argparse.Namespace(**vars(options), **model))
        print()
    print(harness.machine("jax", "tensorflow", "albumentations"))


if __name__ == "__main__":
    main()
