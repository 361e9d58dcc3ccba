"""What a process sets before JAX starts: allocator, compilation cache, TensorFlow; its signals.

Imports neither JAX nor TensorFlow, so that it can be the first thing an entry point calls.
"""

import contextlib
import ctypes
import os
import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def prepare() -> None:
    """All of the settings below, each unless the environment says otherwise."""
    keep_freed_memory()
    cache_compilations()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def keep_freed_memory() -> bool:
    """Keeps glibc from returning freed memory to the kernel: on CPU a step gains up to a third.

    XLA's buffers are allocated and freed at each step; by default glibc unmaps them and faults
    them in again. Must run before jax is imported. AIGC_MALLOC=0 leaves the allocator alone.

    Returns:
      whether it was done: only on Linux with glibc.
    """
    if os.environ.get("AIGC_MALLOC") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    options = {-4: 0, -1: 2**31 - 1, -8: 1}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
    return all([libc.mallopt(option, value) for option, value in options.items()])


def cache_compilations() -> None:
    """Keeps compiled programs on the disk, in JAX_COMPILATION_CACHE_DIR or ~/.cache/aigc_jax."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache) / "aigc_jax" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@contextlib.contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM (a preempted machine's notice) or the first Ctrl-C sets."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, _: Any) -> None:
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        event.set()

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in old.items():
            # None: a handler that isn't Python's, such as jax.distributed's.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
