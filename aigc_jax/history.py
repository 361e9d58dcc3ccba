"""What a run's metrics say as they come, and what is done about those that aren't finite."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.errors import UserError
from aigc_jax.types import Batch


class NonFiniteError(UserError):
    """A run has left the finite numbers.

    Attributes:
      step: at which it was seen.
    """

    def __init__(self, line: str, step: int) -> None:
        super().__init__(line)
        self.step = step


class History:
    """Metrics of the steps since the last log, left on the device until they are asked for."""

    def __init__(self, on_nonfinite: str = "stop") -> None:
        self._stop = on_nonfinite == "stop"
        self._waiting: list[tuple[int, int, Any]] = []
        self._rows: list[dict[str, float]] = []

    def append(self, step: int, n: int, metrics: Any) -> None:
        """The metrics of the call that began after `step` steps and took `n`."""
        self._waiting.append((step, n, metrics))
        if len(self._waiting) > 2:  # never run further ahead of the device than this
            jax.block_until_ready(self._waiting[-3][2])

    def means(self, leave: int, last_good: int | None) -> dict[str, float]:
        """Means over the steps since the last call, all but the newest `leave` calls."""
        self.check(last_good, leave)
        rows, self._rows = self._rows, []
        names = rows[0] if rows else ()
        means = {}
        for name in names:
            values = [row[name] for row in rows if math.isfinite(row[name])]
            means[name] = sum(values) / len(values) if values else math.nan
        if "skipped" in means:
            means["skipped"] = sum(row["skipped"] for row in rows)
        return means

    def check(self, last_good: int | None, leave: int = 0) -> None:
        """Fetches metrics. UserError for the first that isn't finite, where that is to stop."""
        ready = self._waiting[: len(self._waiting) - leave]
        self._waiting = self._waiting[len(ready) :]
        for (step, n, _), metrics in zip(
            ready, jax.device_get([m for *_, m in ready]), strict=True
        ):
            for i in range(n):
                row = {k: float(v[i] if n > 1 else v) for k, v in metrics.items()}
                bad = [name for name, value in row.items() if not math.isfinite(value)]
                if bad and self._stop:
                    raise nonfinite(step + i + 1, bad[0], row[bad[0]], last_good)
                self._rows.append(row)


def skip_nonfinite(train_step: Callable) -> Callable:
    """The step, but where it would leave anything non-finite the old state stays.

    It is chosen inside the compiled step, since donation has eaten the old state outside of it.
    The step counter moves on, so that the next step sees other data and latents.
    """

    def step(state: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any]:
        new, metrics = train_step(state, batch, rng)
        good = all_finite((new, metrics))
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return kept.replace(step=new.step), metrics | {"skipped": 1.0 - good.astype(jnp.float32)}

    return step


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """() bool: whether every number of a tree of arrays is finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floats]).all()


def nonfinite(step: int, name: str, value: Any, last_good: int | None) -> NonFiniteError:
    """What to tell of the first metric that isn't finite; `last_good` is a checkpoint's step."""
    last = "there is no checkpoint yet"
    if last_good is not None:
        last = f"step {last_good} is the last good checkpoint"
    return NonFiniteError(
        f"Step {step}: {name} is {value}; {last}. Lower the learning rate, or "
        "go on past such steps with --config.on_nonfinite=skip.",
        step,
    )
