"""What is done when a run goes wrong: `config.on_collapse`, warn, stop or rollback."""

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from aigc_jax import parallel
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError
from aigc_jax.metrics import collapse


class TroubleError(UserError):
    """A run that can't go on as it is; the message says why.

    Attributes:
      step: at which it was seen.
      before: the last step at which what is wrong was known to be right; None: it isn't known.
    """

    def __init__(self, line: str, step: int = 0, before: int | None = None) -> None:
        super().__init__(line)
        self.step, self.before = step, before


class Watch:
    """Sees the metrics of one launch, and takes the run back where that is asked.

    Args:
      config: of the run; `rollback.times` counts in each launch anew.
      method: warned by its `diagnose(step, means)`, acted on by its `collapsed(step, means)`, taken
        back by its `lr_scale(state)` and `calmed(state, scale)`, as `methods.gan` has them.

    Raises:
      UserError: the method can't do what `on_collapse` asks.
    """

    def __init__(self, config: ConfigDict, method: ModuleType) -> None:
        self._policy = config.get("on_collapse", "warn")
        self._method, self._factor = method, config.get("rollback", {}).get("factor", 0.5)
        self._left = config.get("rollback", {}).get("times", 0)
        self._best, self._fine = math.inf, 0  # distance; the step of the last one that was fine
        self._seen, self._restored = -1, -1  # the last trouble's step, and where it led to
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
        """What the run has measured so far, and nothing else: rows of metrics.jsonl."""
        self._best, self._fine = math.inf, 0
        for row in rows:
            self._note(int(row["step"]), row)
        # Who writes the file knows it; all must decide alike.
        self._best, fine = parallel.from_lead((self._best, float(self._fine)))
        self._fine = int(fine)

    def beside_best(self, values: Mapping[str, float]) -> dict[str, float]:
        """An evaluation's `eval_fid` over the best so far, for the logs; {}: it has none."""
        distance = values.get("eval_fid", math.nan)
        if not math.isfinite(distance):
            return {}
        return {"eval_fid_over_best": distance / min(distance, self._best)}

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
        trouble, before = None, None
        if hasattr(self._method, "collapsed"):
            trouble = collapse.fallen_back(values.get("eval_fid", 0.0), self._best)
            before = self._fine if trouble else None
            trouble = (means and self._method.collapsed(step, means)) or trouble
        self._note(step, values)
        if trouble and self._policy != "warn":
            raise TroubleError(f"Step {step}: {trouble}", step, before)
        diagnose = getattr(self._method, "diagnose", None)
        return trouble or (diagnose(step, means) if means and diagnose else None)

    def _note(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the best distance, and the step of a fine one."""
        distance = values.get("eval_fid", math.nan)
        if math.isfinite(distance) and not collapse.fallen_back(distance, self._best):
            self._best, self._fine = min(distance, self._best), step

    def calmer(self, state: Any) -> float:
        """The scale of learning rates for another attempt, after a state in trouble."""
        return self._factor * float(self._method.lr_scale(state))

    def back(
        self, trouble: UserError, shapes: Any, checkpoints: Checkpoints
    ) -> tuple[tuple[Any, int] | None, str]:
        """The state of the last checkpoint before the trouble and its step, and what to say.

        Where trouble came again before the run had got past the last one, it is a checkpoint before
        the one that it was taken to then. Later ones are discarded, since their steps come anew.
        None in place of the state where there is none: the run begins anew.

        Args:
          trouble: a TroubleError, or a NonFiniteError.
          shapes: of the state.

        Raises:
          UserError: the run has been taken back often enough.
        """
        if not self._left:
            raise UserError(
                f"{trouble} It was taken back as often as config.rollback.times allows: lower "
                "config.optimizer.lr, or the networks' own."
            ) from trouble
        self._left -= 1
        last = getattr(trouble, "before", None)
        last = trouble.step if last is None else last
        if trouble.step <= self._seen:
            last = min(last, self._restored - 1)
        for step in checkpoints.steps:
            if step > last:
                checkpoints.discard(step)
        restored = checkpoints.restore(shapes)
        self._seen = max(self._seen, trouble.step)
        self._restored = 0 if restored is None else restored[1]
        where = "the beginning" if restored is None else f"step {restored[1]}"
        calm = f"with learning rates {self._factor:g} times as large"
        return restored, f"{trouble} Back to {where}, {calm}."
