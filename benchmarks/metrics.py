"""FID, KID and PRDC of given features: ours against the packages that users have."""

import argparse
import contextlib
import importlib
import io
import resource
import sys
import warnings

import harness
import numpy as np


def features(n: int, dim: int, seed: int) -> np.ndarray:
    """(n, dim) float32, at least 0 and correlated, as Inception's: eigenvalues over six decades."""
    rng = np.random.default_rng(seed)
    spread = 10 ** -np.linspace(0, 3, dim, dtype=np.float32)
    basis = np.random.default_rng(0).normal(size=(dim, dim)).astype(np.float32) / dim**0.5
    x = (rng.standard_normal((n, dim), np.float32) * spread) @ basis
    return np.maximum(0.45 + (1 + 0.1 * seed) * x, 0, dtype=np.float32)


def our_fid(options: argparse.Namespace):
    from aigc_jax.metrics import fid, statistics

    def compute(a, b):
        return fid.frechet(*(statistics.from_features(x) for x in (a, b))).value

    return side(compute, options)


def our_fid_of_statistics(options: argparse.Namespace):
    from aigc_jax.metrics import fid, statistics

    return side(lambda a, b: fid.frechet(a, b).value, options, statistics.from_features)


def pytorch_fid(options: argparse.Namespace):
    distance = calculate_frechet_distance()
    return side(lambda a, b: distance(*numpy_moments(a), *numpy_moments(b)), options)


def pytorch_fid_of_statistics(options: argparse.Namespace):
    distance = calculate_frechet_distance()
    return side(lambda a, b: distance(*a, *b), options, numpy_moments)


def numpy_moments(x):
    """As pytorch-fid: its features are float64."""
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def calculate_frechet_distance():
    """pytorch-fid's, silent about what scipy deprecates."""
    allow_torchvision()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    return importlib.import_module("pytorch_fid.fid_score").calculate_frechet_distance


def our_prdc(options: argparse.Namespace):
    from aigc_jax.metrics import prdc

    return side(lambda a, b: tuple(prdc.prdc(a, b, 5)), options)


def naeem_prdc(options: argparse.Namespace):
    import joblib
    from prdc import compute_prdc

    def compute(a, b):  # with threads, as in a process of the user's own
        with contextlib.redirect_stdout(io.StringIO()), joblib.parallel_config("threading"):
            return tuple(map(float, compute_prdc(a, b, 5).values()))

    return side(compute, options)


def our_kid(options: argparse.Namespace):
    from aigc_jax.metrics import kid

    return side(lambda a, b: kid.kid(b, a)[:2], options)


def torch_fidelity_kid(options: argparse.Namespace):
    allow_torchvision()
    import torch

    metric = importlib.import_module("torch_fidelity.metric_kid").kid_features_to_metric

    def compute(a, b):
        return tuple(metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False).values())

    return side(compute, options)


PAIRS = {
    "FID": (our_fid, pytorch_fid),
    "FID, statistics given": (our_fid_of_statistics, pytorch_fid_of_statistics),
    "PRDC": (our_prdc, naeem_prdc),
    "KID": (our_kid, torch_fidelity_kid),
}


def side(compute, options: argparse.Namespace, prepare=lambda x: x):
    """A worker whose step is one value; the first, not timed, tells the memory it takes."""
    before = peak_memory()
    x = [prepare(features(options.images, options.dim, seed)) for seed in (1, 2)]
    facts = {"value": compute(*x)}
    facts["memory_mb"] = peak_memory() - before
    return harness.timer(lambda: compute(*x), lambda: None), facts


def peak_memory() -> float:
    """The most that this process has held so far, in MiB, with its libraries."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def allow_torchvision() -> None:
    """A torchvision for CUDA doesn't import beside a torch without: it misses two operators."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _LIBRARIES[-1].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")


_LIBRARIES = []  # operators vanish with the object that defined them


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--images", type=int, default=10_000, help="on each side")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> list[tuple]:
    """Rows of the table: ours, theirs."""
    workers = [harness.Worker(make, options, threads=options.threads) for make in PAIRS[name]]
    times = harness.take_turns(workers, options.rounds, 1)
    seconds = [harness.summary(t)["median"] / 1e3 for t in times]
    values = [np.atleast_1d(worker.facts["value"]) for worker in workers]
    apart = np.max(np.abs(values[0] - values[1]))
    rows = []
    for worker, taken, value in zip(workers, seconds, values, strict=True):
        told = " ".join(f"{v:.10g}" for v in value)
        memory = f"{worker.facts['memory_mb']:,.0f}"
        rows.append((name, worker.name, taken, seconds[1] / taken, memory, told, f"{apart:.1e}"))
        worker.stop()
    return rows


def main() -> None:
    options = parse_arguments()
    rows = [row for name in options.metrics for row in measure(name, options)]
    print(f"{harness.machine('jax', 'numpy', 'scipy', 'torch')}, 2 x {options.images} features")
    print(f"of {options.dim} numbers; MiB: the peak above the libraries', features included\n")
    header = ("metric", "side", "s", "times as fast", "MiB", "value", "difference")
    print(harness.table(header, rows))


if __name__ == "__main__":
    main()
