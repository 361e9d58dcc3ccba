"""Score records: one line of `scores.jsonl` an evaluation, and the table that compares runs.

Two numbers stand in one column only where they were measured alike: the same network and weights,
protocol, precision, real images and number of images on both sides.
"""

import contextlib
import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aigc_jax.errors import UserError

SCORES = "scores.jsonl"
_OF_SAMPLES = ("is", "precision", "recall", "density", "coverage", "label_accuracy", "accuracy")
_OF_PAIRS = ("psnr", "ssim", "within_5", "elbo", "active_units", "perplexity", "codebook_use")
_OF_CAPTIONS = ("shape", "colour", "size", "texture", "relation", "background", "count", "all")
HIGHER_IS_BETTER = frozenset(_OF_SAMPLES + _OF_PAIRS + _OF_CAPTIONS)
_BEST_IS_ONE = frozenset(["sharpness"])
_VALUES = {
    "prdc": ("precision", "recall", "density", "coverage"),
    "pr": ("precision", "recall"),
    "attributes": _OF_CAPTIONS,
}
# What costs nothing, and is measured beside translations: "copied_fid" is that of the sources.
BASELINES = ("copied", "constant")
# What may differ between two comparable numbers.
_INCIDENTAL = frozenset(["seed", "fake", "weights", "official", "version"])


class Evaluation(NamedTuple):
    """Records by metric, and how they were made."""

    scores: dict[str, dict[str, Any]]
    provenance: dict[str, Any]


def plain(name: str) -> str:
    """A score's name without its baseline's: "fid" of "copied_fid"."""
    first, _, rest = name.partition("_")
    return rest if first in BASELINES else name


def beside_baselines(
    scores: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ()
) -> dict[str, Mapping[str, Any]]:
    """The scores of these names, (): all, each after those of the baselines."""
    names = names or [x for x in scores if plain(x) == x or plain(x) not in scores]
    every = [full for x in names for full in (*(f"{first}_{x}" for first in BASELINES), x)]
    return {name: scores[name] for name in every if name in scores}


def flat(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{"fid": {"value": 3.2, ...}, "prdc": {...}} -> {"fid": 3.2, "prdc_precision": ..., ...}."""
    found = {}
    for metric, score in scores.items():
        for key in _VALUES.get(plain(metric), ("value",)):
            if key in score:
                found[metric if key == "value" else f"{metric}_{key}"] = float(score[key])
    return found


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each number, with what is known of its spread."""
    lines = []
    for name, value in flat(scores).items():
        score = scores.get(name) or scores[name.rpartition("_")[0]]
        spread = ""
        if "interval" in score:
            spread = "  95% [{:.5g}, {:.5g}]".format(*score["interval"])
        elif score.get("splits", 2) > 1 and "std" in score:
            spread = f"  +- {score['std']:.4g}"
        real = score.get("real")
        if isinstance(real, Mapping):
            real = real.get(name.rpartition("_")[2])
        if real is not None:
            spread += f"  (real images: {real:.5g})"
        unit = f" {score['unit']}" if "unit" in score else ""
        if "value" in score and "k" in score:
            spread += f"  (k = {score['k']})"
        lines.append(f"{name:20s} {value:.6g}{unit}{spread}")
    return "\n".join(lines)


def append(
    workdir: str | Path, step: int, images_seen: int, scores: Mapping, provenance: Mapping
) -> None:
    """Adds a line to the run's `scores.jsonl`."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {
        "step": step,
        "images_seen": images_seen,
        "time": time,
        "scores": scores,
        "provenance": provenance,
    }
    path = Path(workdir) / SCORES
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")


def rewind(workdir: str | Path, step: int) -> None:
    """Drops the records after a step, from which the run goes on."""
    path = Path(workdir) / SCORES
    if not path.exists():
        return
    with contextlib.suppress(UserError):
        kept = [record for record in read(workdir) if record["step"] <= step]
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(record) + "\n" for record in kept))
        new.replace(path)


def read(workdir: str | Path) -> list[dict]:
    """The records of a run, in the order they were made; a torn line is left out.

    Raises:
      UserError: there are none.
    """
    if not Path(workdir).is_dir():
        raise UserError(f"There is no run {workdir}.")
    path, records = Path(workdir) / SCORES, []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    if not records:
        raise UserError(f"{workdir} has no scores yet: aigc evaluate --fake {workdir} makes some.")
    return records


def measured_alike(provenance: Mapping[str, Any]) -> str:
    """One line for how numbers were measured; equal where they may be compared."""
    kept = {k: v for k, v in sorted(provenance.items()) if k not in _INCIDENTAL and v is not None}
    if "sha256" in kept:
        kept["sha256"] = str(kept["sha256"])[:8]
    first = [str(kept.pop(k)) for k in ("extractor", "protocol") if k in kept]
    n_fake, n_real, real = (kept.pop(k, None) for k in ("n_fake", "n_real", "real"))
    against = f" against {n_real or '?'} of {real}" if real else ""
    images = [f"{n_fake} samples{against}"] if n_fake else [real] * bool(real)
    rest = [f"{k} {v}" for k, v in kept.items()]
    return ", ".join([" ".join(first), *images, *rest]).strip(", ")


def compare(workdirs: Iterable[str | Path]) -> str:
    """Tables of the *last* and *best* scores of runs, one for each way of measuring.

    The last record is the one of the highest step (the newest of those), and the best the best of
    any: public tables that give the best alone hide a collapse.

    Raises:
      UserError: a run without scores.
    """
    groups: dict[str, dict[str, list[dict]]] = {}
    for workdir in workdirs:
        for record in read(workdir):
            alike = measured_alike(record["provenance"])
            groups.setdefault(alike, {}).setdefault(str(workdir), []).append(record)
    tables = [f"Measured by {alike}\n\n{_table(runs)}" for alike, runs in groups.items()]
    if len(groups) > 1:
        tables.append(
            f"{len(groups)} ways of measuring, hence {len(groups)} tables: "
            "numbers of different ones can't be compared."
        )
    return "\n\n".join(tables)


def _table(runs: Mapping[str, list[dict]]) -> str:
    names = list(dict.fromkeys(n for rs in runs.values() for r in rs for n in _columns(r)))
    heads = ["run", "last step", "images seen"]
    for name in names:
        heads += [f"{name} last", f"{name} best (step)"]
    rows = [_row(workdir, records, names) for workdir, records in runs.items()]
    return markdown(heads, rows)


def _row(workdir: str, records: list[dict], names: list[str]) -> list[str]:
    last = max(enumerate(records), key=lambda x: (x[1]["step"], x[0]))[1]
    row = [workdir, str(last["step"]), f"{last['images_seen']:,}"]
    for name in names:
        having = [r for r in records if math.isfinite(_columns(r).get(name, math.nan))]
        best = min(having, key=lambda r: _badness(name, _columns(r)[name]), default=None)
        row.append(_number(last, name))
        row.append("" if best is None else f"{_number(best, name)} ({best['step']})")
    return row


def _badness(column: str, value: float) -> float:
    metric = plain(column.partition(" (")[0])
    if metric in _BEST_IS_ONE:
        return abs(value - 1)
    higher = metric in HIGHER_IS_BETTER or metric.rpartition("_")[2] in HIGHER_IS_BETTER
    return -value if higher else value


def _columns(record: dict) -> dict[str, float]:
    """`flat`, with what parts numbers of one metric: other units, other numbers of samples."""
    scores = record["scores"]
    return {_column(name, scores.get(name, {})): value for name, value in flat(scores).items()}


def _column(name: str, score: Mapping[str, Any]) -> str:
    how = [f"k = {score['k']}"] if "k" in score else []
    how += [score["unit"]] if "unit" in score else []
    return f"{name} ({', '.join(how)})" if how else name


def _number(record: dict, name: str) -> str:
    value = _columns(record).get(name)
    if value is None:
        return ""
    low, high = record["scores"].get(name, {}).get("interval", (None, None))
    return f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None else "")


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table whose columns line up on a terminal too."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |"
        for row in [heads, ["-" * w for w in widths], *rows]
    ]
    return "\n".join(lines)
