"""The whole training loop around the step (data, logs, progress bar) against the step alone.

`train.run` runs in a process of its own on its own source and pauses between turns, held back at
its next batch. Pictures, checkpoints and evaluation are off: they cost by their own cadence.
"""

import argparse
import functools
import os
import tempfile
import threading
import time
import traceback

import harness

SETTLE = 6  # batches after a pause until the loop runs as far ahead as it does in one piece


class Gate:
    """A stream of batches that stops the loop between turns and stamps when it asks for each."""

    def __init__(self, stream) -> None:
        self._stream, self._permits = stream, threading.Semaphore(0)
        self._stamps, self._paused = [], threading.Event()
        self._left = 0

    def __call__(self, step: int):
        for i, batch in enumerate(self._stream(step)):
            if i:  # the first batch settles shapes, before the loop begins
                self._wait()
            yield batch

    def _wait(self) -> None:
        self._stamps.append(time.perf_counter())
        self._left -= 1
        if self._left < 0:
            self._paused.set()
            self._permits.acquire()

    def run(self, steps: int) -> list[float]:
        """Lets the loop take `steps` batches and some to settle; the mean of the `steps`."""
        self._paused.wait()
        self._paused.clear()
        self._stamps.clear()
        self._left = steps + SETTLE
        self._permits.release()
        self._paused.wait()
        settled = self._stamps[-1 - steps]
        return [(self._stamps[-1] - settled) / steps * 1e3]


def load_config(name: str, options: argparse.Namespace):
    """A config of configs/, with the loop's own work alone, and its stream of batches."""
    from aigc_jax import config as configs
    from aigc_jax.data import configured

    config = configs.load(name)
    config.num_train_steps = 10**9
    config.sample_every = config.checkpoint_every = config.eval.every = 0
    config.batch_size = options.batch
    return configured.training(config)


def train(config, workdir: str, gate: Gate) -> None:
    from aigc_jax import train

    try:
        train.run(config, workdir, gate)
    except BaseException:  # in a thread; the process must not wait for it
        traceback.print_exc()
        os._exit(1)


def loop(name: str, options: argparse.Namespace):
    """`train.run` on the config's source."""
    config, stream = load_config(name, options)
    gate = Gate(stream)
    threading.Thread(target=train, args=(config, options.workdir, gate), daemon=True).start()
    gate.run(1)
    return gate.run, {}


def bare(name: str, options: argparse.Namespace):
    """The same compiled step, on one batch that stays."""
    import jax

    from aigc_jax import methods, parallel

    config, stream = load_config(name, options)
    method, layout = methods.load(config.method), parallel.layout(config.parallel)
    spec, rng = method.from_config(config, axis_name=layout.axis_name), jax.random.key(0)
    batch = next(stream(0))
    state = jax.jit(functools.partial(method.init_state, spec))(rng, batch)
    held = {"state": layout.place_state(state)}
    batch = layout.place_batch(batch)
    step = layout.compile(functools.partial(method.train_step, spec), state)

    def one() -> None:
        held["state"], held["metrics"] = step(held["state"], batch, rng)

    return harness.timer(one, lambda: jax.block_until_ready(held), each=False), {}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["digits_dcgan", "mnist_dcgan"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument(
        "--steps", type=int, default=50, help="steps a turn: a multiple of log_every"
    )
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> tuple:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as workdir:
        options.workdir = workdir
        workers = [
            harness.Worker(side, name, options, threads=options.threads) for side in (loop, bare)
        ]
        times = harness.take_turns(workers, options.rounds, options.steps)
        for worker in workers:
            worker.stop()
    whole, step = map(harness.summary, times)
    percent = [f"{100 * (whole[k] / step[k] - 1):+.1f}%" for k in ("median", "minimum")]
    return name, step["median"], whole["median"], *percent


def main() -> None:
    options = parse_arguments()
    rows = [measure(name, options) for name in options.configs]
    print(f"{harness.machine('jax', 'tensorflow')}, batch {options.batch}\n")
    header = ("config", "step ms", "loop ms", "overhead, medians", "overhead, minima")
    print(harness.table(header, rows))


if __name__ == "__main__":
    main()
