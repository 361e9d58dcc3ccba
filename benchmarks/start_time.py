"""From a new process to the end of the first step: cold, then with a compilation cache.

The cache of JAX lies in a new folder: the first launch fills it, the second one reads it.
"""

import argparse
import os
import tempfile

import harness
import step_time


def launch(cache: str | None, options: argparse.Namespace):
    """Our step, compiled and run once in a process with the compilation cache `cache`."""
    # Before jax is imported; without a folder there is no cache.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    run, facts = step_time.ours(options)
    run(1)
    return run, facts


def main() -> None:
    options = step_time.parse_arguments()
    with tempfile.TemporaryDirectory() as cache:
        names = {"no cache": None, "empty cache": cache, "second launch": cache}
        rows = []
        for name, folder in names.items():
            worker = harness.Worker(launch, folder, options, threads=options.threads)
            facts = worker.facts
            rows.append((name, facts["trace_s"], facts["compile_s"], facts["launch_s"]))
            worker.stop()
    print(harness.machine("jax", "jaxlib") + "\n")
    print(harness.table(("launch", "trace s", "compile s", "process to first step s"), rows))


if __name__ == "__main__":
    main()
