"""Images a second of the tf.data pipeline alone, against what the training step consumes.

For each source the pipeline runs as training would run it: from memory, and with `streamed` decoded
from its records at every epoch, as sets too large for memory are.
"""

import argparse

import harness
import step_time


def stream(source: str, cache_bytes: int, options: argparse.Namespace):
    """The batches of `source` with labels; a step is one batch, in numpy."""
    from aigc_jax.data import pipeline, sources, tasks

    dataset = sources.load(source, image_size=options.image_size, cache_bytes=cache_bytes)
    batches = pipeline.batches(dataset, tasks.label, batch_size=options.batch, seed=0)
    facts = {"channels": dataset.channels, "num_classes": dataset.num_classes}
    return harness.timer(lambda: next(batches), lambda: None, each=False), facts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", nargs="+", default=["tfds:mnist", "tfds:cifar10"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="training steps a turn")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    return parser.parse_args()


def measure(source: str, options: argparse.Namespace) -> list[tuple]:
    """Rows of the table: the pipeline from memory, the pipeline streamed, the training step."""
    feeds = [
        harness.Worker(stream, source, cache, options, threads=options.threads)
        for cache in (2 << 30, 0)
    ]
    model = argparse.Namespace(
        **vars(options), **feeds[0].facts, dtype="float32", steps_per_dispatch=1, each=False
    )
    step = harness.Worker(step_time.ours, model, threads=options.threads)
    workers = [*feeds, step]
    # The pipeline takes turns 20 times as long, to average over its buffers.
    times = harness.take_turns(workers, options.rounds, options.steps, scale=(20, 20, 1))
    rates = [options.batch * 1e3 / harness.summary(t)["median"] for t in times]
    for worker in workers:
        worker.stop()
    names = ("from memory", "streamed", "training step")
    return [(source, name, rate, rate / rates[-1]) for name, rate in zip(names, rates, strict=True)]


def main() -> None:
    options = parse_arguments()
    rows = [row for source in options.sources for row in measure(source, options)]
    print(f"{harness.machine('tensorflow', 'tensorflow-datasets', 'jax')}, batch {options.batch}\n")
    print(harness.table(("source", "side", "images/s", "/ step"), rows))


if __name__ == "__main__":
    main()
