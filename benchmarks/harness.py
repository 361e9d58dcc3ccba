"""What the scripts share: sides in processes of their own, timed in turn, on equal terms."""

import contextlib
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from aigc_jax import runtime


class Worker:
    """One side of a comparison, alive in its own process between its turns.

    `make(*args)` runs there and returns `(run, facts)`: `run(k)` does k steps and returns times in
    milliseconds a step; `facts` is a dict for the report, to which `launch_s` is added.
    """

    def __init__(self, make: Callable, *args, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, (self._pipe, pipe) = make.__name__, context.Pipe()
        self._process = context.Process(
            target=_serve, args=(pipe, threads, make, args), daemon=True
        )
        started = time.perf_counter()
        self._process.start()
        pipe.close()  # so that a worker's death ends the reading below
        self.facts = self._receive()
        self.facts["launch_s"] = time.perf_counter() - started

    def times(self, steps: int) -> list[float]:
        """A turn of `steps` steps: milliseconds a step, one number or one for each."""
        self._pipe.send(steps)
        return self._receive()

    def stop(self) -> None:
        """Ends the process; a training loop held back in it does not end by itself."""
        self._pipe.send(0)
        self._process.join(5)
        self._process.terminate()

    def _receive(self):
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.name} died in its process; its error is above.") from None


def _serve(pipe: Connection, threads: int, make: Callable, args: Sequence) -> None:
    use_cores(threads)
    runtime.keep_freed_memory()  # before jax or torch is imported
    run, facts = make(*args)
    pipe.send(facts)
    with contextlib.suppress(EOFError):  # the asking process has ended
        while steps := pipe.recv():
            pipe.send(run(steps))


def timer(step: Callable, wait: Callable, each: bool = True) -> Callable[[int], list[float]]:
    """The `run` of a worker: k times `step()`; `wait()` blocks until what it started is done.

    With `each` every step is waited for and timed; else one mean over steps that may overlap.
    """

    def run(steps: int) -> list[float]:
        stamps = [time.perf_counter()]
        for _ in range(steps):
            step()
            if each:
                wait()
                stamps.append(time.perf_counter())
        wait()
        if each:
            return [(b - a) * 1e3 for a, b in itertools.pairwise(stamps)]
        return [(time.perf_counter() - stamps[0]) / steps * 1e3]

    return run


def use_cores(count: int) -> None:
    """Holds this process to its first `count` cores, where the system can; XLA's pool follows."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def take_turns(
    workers: Sequence[Worker], rounds: int, steps: int, scale: Sequence[int] | None = None
) -> list[list[float]]:
    """Each worker's times over rounds of A B A B; a first round is dropped.

    A turn is `steps` steps, times the worker's entry of `scale`.
    """
    times = [[] for _ in workers]
    for turn in range(rounds + 1):
        for i, worker in enumerate(workers):
            measured = worker.times(steps * (scale[i] if scale else 1))
            times[i].extend(measured if turn else [])
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and minimum, in the unit of `times`."""
    return {"median": statistics.median(times), "minimum": min(times)}


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table; floats to three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"


def machine(*packages: str) -> str:
    """One line: processor, cores, and the versions of Python and `packages`."""
    versions = [f"{name} {_version(name)}" for name in packages]
    cores = f"{os.cpu_count()} cores"
    return ", ".join([_processor(), cores, f"Python {platform.python_version()}", *versions])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if "model name" in line).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def beside_torch(ours: Callable, torch: Callable, options, unit: str, head: str) -> str:
    """The table of a step of ours and PyTorch's, in turns, each side made of `options`.

    Args:
      ours, torch: see `Worker`; their facts hold `compile_s` and `parameters`.
      options: with `threads`, `rounds`, `steps` and `batch`.
      unit: what a batch is of, "images".
      head: over the column of parameters.
    """
    workers = [Worker(side, options, threads=options.threads) for side in (ours, torch)]
    times = take_turns(workers, options.rounds, options.steps)
    base, rows = summary(times[1]), []
    for worker, each in zip(workers, times, strict=True):
        median, minimum = summary(each).values()
        ratios = median / base["median"], minimum / base["minimum"]
        facts = worker.facts["compile_s"], worker.facts["parameters"]
        rows.append((worker.name, median, minimum, *ratios, options.batch / median * 1e3, *facts))
        worker.stop()
    ratios = ("median / torch", "min / torch")
    return table(("side", "median ms", "min ms", *ratios, f"{unit}/s", "compile s", head), rows)
