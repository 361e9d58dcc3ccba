"""Images/s of FID's Inception: ours against torch-fidelity's, in turn on one machine.

uint8 images in, resized as TensorFlow 1 does, pool features out, with the same random weights on
each side. Every side lives in a process of its own, under the same allocator setting and core
count; the images are on the device already. `channels-last` is torch-fidelity's network with its
memory laid out as PyTorch likes it best, which torch-fidelity itself does not do. On a GPU, the
sides named tf32 leave float32 for TensorFloat-32. A share of 1 is the rate of a matrix product of
4096x4096 on that side, at 11.42 GFLOP an image; fewer products than the plain network's can pass 1.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import harness

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the random weights

GFLOP = 11.42  # an image of 299x299, counting a multiplication and an addition each
FEW = 4  # images whose features are compared between the sides


def images(options: argparse.Namespace, batch: int):
    import numpy as np

    shape = (batch, options.image_size, options.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def runner(options: argparse.Namespace, extract, put, wait):
    """`(run, facts)`: a step is one batch of every size, timed one by one in milliseconds."""
    batches, compile_s = {}, {}
    for batch in options.batches:
        batches[batch], started = put(images(options, batch)), time.perf_counter()
        wait(extract(batches[batch]))
        compile_s[batch] = time.perf_counter() - started

    def run(steps):
        return [[milliseconds(extract, wait, batches[b]) for b in batches] for _ in range(steps)]

    features = wait(extract(put(images(options, FEW))))
    return run, {"features": features, "compile_s": compile_s}


def milliseconds(extract, wait, batch) -> float:
    started = time.perf_counter()
    wait(extract(batch))
    return (time.perf_counter() - started) * 1e3


def product_rate(multiply, matrix, wait) -> float:
    """GFLOP/s of a large matrix product, the best of several."""
    times = [milliseconds(lambda m: multiply(m, m), wait, matrix) for _ in range(10)]
    return 2 * len(matrix) ** 3 / min(times) / 1e6


def ours(options: argparse.Namespace, precision: str = "highest"):
    """This library."""
    import inception_random
    import jax
    import jax.numpy as jnp
    import numpy as np

    from aigc_jax.metrics import inception, protocols

    extractor = inception.extractor(
        inception_random.weights(), protocols.find("tf1"), precision=precision
    )
    apply = jax.jit(lambda variables, x: extractor.apply(variables, x)["features"])
    extract = functools.partial(apply, extractor.variables)
    run, facts = runner(options, extract, jax.device_put, np.asarray)
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return run, facts | {
        "rate": product_rate(multiply, jnp.ones((4096, 4096)), jax.block_until_ready)
    }


def ours_tf32(options: argparse.Namespace):
    """Ours, with the device's fastest products."""
    return ours(options, "default")


def torch_fidelity(options: argparse.Namespace, tf32: bool = False, channels_last: bool = False):
    """torch-fidelity's extractor, in PyTorch eager."""
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    device = "cuda" if options.device == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = torch_network().to(device, memory_format=layout)

    def put(x):
        x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return x.to(device, memory_format=layout)

    def wait(y):
        return y.cpu().numpy()

    with torch.inference_mode():
        run, facts = runner(options, torch.inference_mode()(lambda x: network(x)[0]), put, wait)
        matrix = torch.ones((4096, 4096), device=device)
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        rate = product_rate(torch.mm, matrix, lambda _: synchronize())
    return run, facts | {"rate": rate}


def torch_network():
    import tempfile

    import inception_random
    import torch

    inception_random.allow_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    arrays = inception_random.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "random.pth")
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        return FeatureExtractorInceptionV3("", ["2048"], feature_extractor_weights_path=path)


def channels_last(options: argparse.Namespace):
    """torch-fidelity's network in PyTorch's best layout."""
    return torch_fidelity(options, channels_last=True)


def torch_fidelity_tf32(options: argparse.Namespace):
    """torch-fidelity's with TensorFloat-32."""
    return torch_fidelity(options, tf32=True)


MAKE = {
    "ours": ours,
    "torch-fidelity": torch_fidelity,
    "channels-last": channels_last,
    "ours-tf32": ours_tf32,
    "torch-fidelity-tf32": torch_fidelity_tf32,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", help="default 8 16 32 64; 64 256 on GPU")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="cores a side may use; default 2; all on a GPU")
    parser.add_argument("--sides", nargs="+", choices=MAKE, help="default all of the device")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="batches of every size a turn")
    parser.add_argument("--json", action="store_true", help="print JSON, all times in it")
    options = parser.parse_args()
    gpu = options.device == "gpu"
    options.batches = options.batches or ([64, 256] if gpu else [8, 16, 32, 64])
    options.threads = options.threads or (4096 if gpu else 2)
    options.sides = options.sides or list(MAKE)[: 5 if gpu else 3]
    return options


def main() -> None:
    options = parse_arguments()
    workers = [
        harness.Worker(MAKE[side], options, threads=options.threads) for side in options.sides
    ]
    times = harness.take_turns(workers, options.rounds, options.steps)
    for worker in workers:
        worker.stop()
    report(options, dict(zip(options.sides, times, strict=True)), [w.facts for w in workers])


def report(options: argparse.Namespace, times: dict[str, list], facts: list[dict]) -> None:
    """Prints the table, or with `--json` everything."""
    machine = harness.machine("jax", "jaxlib", "torch", "torch-fidelity")
    features = [fact.pop("features") for fact in facts]
    differences = [float(distance(f, features[0])) for f in features]
    if options.json:
        facts = [f | {"difference": d} for f, d in zip(facts, differences, strict=True)]
        everything = {"options": vars(options), "ms": times, "facts": facts}
        print(json.dumps({"machine": machine, **everything}))
        return
    size = options.image_size
    print(f"Inception of FID, {size}x{size} uint8 to features, {options.device}\n{machine}\n")
    header = ("side", "batch", "images/s", "best", "share", "first call s", "features differ by")
    print(harness.table(header, list(rows(options, times, facts, differences))))


def distance(a, b) -> float:
    """Relative, of all features together."""
    import numpy as np

    return np.linalg.norm(a - b) / np.linalg.norm(b)


def rows(options, times, facts, differences):
    """Per batch size, a row for each side."""
    for i, batch in enumerate(options.batches):
        for (side, steps), fact, difference in zip(times.items(), facts, differences, strict=True):
            summary = harness.summary([step[i] for step in steps])
            median, best = (batch / summary[name] * 1e3 for name in ("median", "minimum"))
            share = best * GFLOP / fact["rate"]
            first = fact["compile_s"][batch]
            yield side, batch, median, best, share, first, f"{difference:.0e}"


if __name__ == "__main__":
    main()
