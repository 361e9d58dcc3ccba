"""What is done when a run goes wrong: `config.on_collapse`, warn, stop or rollback."""

import logging
import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError
from aigc_jax.metrics import collapse


class TroubleError(UserError):
    """A run that can't go on as it is; the message says why."""


class Watch:
    """Sees the metrics of one launch, and takes the run back where that is asked.

    Args:
      config: of the run.
      method: warned by its `diagnose(step, means)`, acted on by its `collapsed(step, means)`, taken
        back by its `calmed(state, than, factor)`, as `methods.gan` has them.

    Raises:
      UserError: the method can't do what `on_collapse` asks.
    """

    def __init__(self, config: ConfigDict, method: ModuleType) -> None:
        self._policy = config.get("on_collapse", "warn")
        self._method, self._factor = method, config.get("rollback", {}).get("factor", 0.5)
        self._left = config.get("rollback", {}).get("times", 0)
        self._best: float | None = None
        self._restored: int | None = None
        needed = {"stop": "collapsed", "rollback": "calmed"}.get(self._policy)
        if needed and not hasattr(method, needed):
            raise UserError(
                f"config.on_collapse is {self._policy!r}, which the method {config.method!r} has "
                "no signs for: set it to warn."
            )

    @property
    def rolls_back(self) -> bool:
        """Whether trouble ends in another attempt."""
        return self._policy == "rollback"

    def remember(self, rows: Iterable[Mapping[str, float]]) -> None:
        """What a launch before has measured: rows of metrics.jsonl."""
        for row in rows:
            self._note(row)

    def beside_best(self, values: Mapping[str, float]) -> dict[str, float]:
        """An evaluation's `eval_fid` over the best so far, for the logs; {}: it has none."""
        best = self._note(values)
        return {"eval_fid_over_best": values["eval_fid"] / best} if best else {}

    def look(
        self, step: int, means: Mapping[str, float], values: Mapping[str, float]
    ) -> str | None:
        """A line of warning, or None.

        Args:
          means: of the steps since the last look; {}: none.
          values: an evaluation's; {}: none.

        Raises:
          TroubleError: there is trouble to act on.
        """
        trouble = None
        if hasattr(self._method, "collapsed"):
            if best := self._note(values):
                trouble = collapse.fallen_back(values["eval_fid"], best)
            trouble = (means and self._method.collapsed(step, means)) or trouble
        if trouble and self._policy != "warn":
            raise TroubleError(f"Step {step}: {trouble}")
        diagnose = getattr(self._method, "diagnose", None)
        return trouble or (diagnose(step, means) if means and diagnose else None)

    def _note(self, values: Mapping[str, float]) -> float | None:
        """The best distance, these values' included; None where they hold none."""
        distance = values.get("eval_fid")
        if distance is None or not math.isfinite(distance):
            return None
        self._best = min(distance, math.inf if self._best is None else self._best)
        return self._best

    def back(
        self, trouble: UserError, shapes: Any, checkpoints: Checkpoints
    ) -> tuple[Any, int] | None:
        """The state of the last checkpoint before the trouble, and its step.

        One that a run was taken back to before, in vain, is discarded for the one before it. None
        where there is none: the run begins anew.

        Args:
          shapes: of the state.

        Raises:
          UserError: the run has been taken back often enough.
        """
        if not self._left:
            raise UserError(
                f"{trouble} It was taken back as often as config.rollback.times allows: lower "
                "config.optimizer.lr."
            ) from trouble
        self._left -= 1
        checkpoints.wait()
        if self._restored is not None and checkpoints.latest_step == self._restored:
            checkpoints.discard(self._restored)
        restored = checkpoints.restore(shapes)
        self._restored = None if restored is None else restored[1]
        where = "the beginning" if restored is None else f"step {restored[1]}"
        logging.warning(
            "%s Back to %s, with learning rates %g times as large.", trouble, where, self._factor
        )
        return restored

    def calmed(self, state: Any, than: Any) -> Any:
        """The state with learning rates smaller than those of the one in trouble."""
        return self._method.calmed(state, than, self._factor)
