"""How much damage trained networks bear: a curve along each degradation's strength.

    aigc robustness WORKDIR... --ops "noise(0..75),blur(0..4),jpeg(95..5)" --out DIR

The blind denoiser against the specialised ones: the runs of both, and `--ops "noise(0..75)"`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from aigc_jax import __version__, data, methods, parallel, runs, sampling, scores
from aigc_jax import config as configs
from aigc_jax.data import configured, degrade
from aigc_jax.domains import DIRECTIONS
from aigc_jax.errors import UserError
from aigc_jax.metrics import translation
from aigc_jax.operations import Operation
from aigc_jax.sample_scores import name_of, some
from aigc_jax.types import Array, Batch

CURVES = "curves"
DAMAGED = "damaged"  # what the damaged images are worth by themselves
_UNIT = {"accuracy": "", "psnr": "dB"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One degradation at several strengths, the first of its arguments.

    Attributes:
      text: as it was asked for, "noise(0..75)".
      parameter: the strength's name, "sigma".
      strengths: in the order asked for.
      operations: the degradation at each.
    """

    text: str
    parameter: str
    strengths: tuple[float, ...]
    operations: tuple[Operation, ...]


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What `curves` measured.

    Attributes:
      found: {"metric": "psnr", "unit": "dB", "curves": [{"op", "parameter", "strengths", "values":
        {run: [...]}}], "provenance": ...}, as in curves.json.
      out: the folder that holds it, and curves.png.
    """

    found: dict[str, Any]
    out: str

    def told(self) -> str:
        """A table for each degradation, a row a run."""
        tables = [_table(curve, self.found) for curve in self.found["curves"]]
        return "\n\n".join([*tables, f"Curves in {Path(self.out, CURVES)}.png and .json"])


def sweeps(ops: str, points: int = 6) -> tuple[Sweep, ...]:
    """Reads "noise(0..75),jpeg(95..5)": evenly spaced strengths of each, both ends among them.

    A range may run down, as JPEG's damage grows with a falling quality. Strengths of what counts
    are rounded. Other arguments than the first are as in `data.degrade`.

    Raises:
      UserError: fewer than 2 points; an unknown degradation, one without a range, or out of range.
    """
    if points < 2:
        raise UserError(f"--points {points}: a curve has at least 2.")
    return tuple(_sweep(item.strip(), points) for item in _items(ops))


def curves(
    workdirs: Sequence[str | Path],
    ops: str,
    out: str | Path,
    num: int = 1000,
    points: int = 6,
    seed: int = 0,
) -> Robustness:
    """Measures runs on held-out images, damaged ever more, and writes curves.json and curves.png.

    Each by what it is for: classifiers by accuracy; by PSNR in dB (an image's at most 100)
    restorers and what encodes and decodes, both to the undamaged image, and translators to the
    known truth. Where it is PSNR, that of the damaged images themselves stands beside it. Restorers
    see damage as in training, not clipped; the others see 8-bit images. Image i has the damage of
    (seed, i) at every strength, to every run that has the same held-out images.

    Args:
      workdirs: runs that are measured alike, each a curve.
      ops: see `sweeps`.
      out: a new or empty folder.
      num: held-out images at most, drawn alike each time.
      points: strengths of each degradation.

    Raises:
      UserError: see `sweeps`; runs that take no images, or that are measured by different things;
        fewer than 1 image; `out` is taken.
    """
    asked = sweeps(ops, points)
    if num < 1:
        raise UserError(f"--num {num}: measure 1 image or more.")
    sampling.check_seed(seed)
    sampling.check_folder(out)
    metric = _metric(workdirs)
    names, sources = _names(workdirs), {}
    values: list[dict[str, list[float]]] = [{} for _ in asked]
    for name, workdir in zip(names, workdirs, strict=True):
        run = runs.load(workdir)
        held = configured.held_out(run.config)
        n = min(num, len(held))
        sources[name] = {"run": f"{workdir} step {run.step}", "real": name_of(held, n), "n_real": n}
        for found, means in zip(values, _measured(run, held, n, asked, seed), strict=True):
            if f"copied_{metric}" in means:
                real = {name: source["real"] for name, source in sources.items()}
                found.setdefault(_damaged_name(real, name), means[f"copied_{metric}"])
            found[name] = means[metric]
    found = {
        "metric": metric,
        "unit": _UNIT[metric],
        "curves": [
            {
                "op": sweep.text,
                "parameter": sweep.parameter,
                "strengths": list(sweep.strengths),
                "values": value,
            }
            for sweep, value in zip(asked, values, strict=True)
        ],
        "provenance": {"runs": sources, "seed": seed, "version": __version__},
    }
    runs.write_json(Path(out) / f"{CURVES}.json", found)
    plot(found, Path(out) / f"{CURVES}.png")
    return Robustness(found, str(out))


def plot(found: dict[str, Any], path: Path) -> None:
    """A panel for each degradation, a line for each run; damage grows to the right."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    sweeps = found["curves"]
    figure = Figure(figsize=(7, 2.6 * len(sweeps)), layout="constrained")
    axes = figure.subplots(len(sweeps), 1, squeeze=False)[:, 0]
    for axis, curve in zip(axes, sweeps, strict=True):
        for name, values in curve["values"].items():
            damaged = name.startswith(DAMAGED)
            style = {"color": "grey", "linestyle": "--"} if damaged else {"marker": "."}
            axis.plot(curve["strengths"], values, label=name, **style)
        if curve["strengths"][0] > curve["strengths"][-1]:
            axis.invert_xaxis()
        axis.set_xlabel(f"{curve['op'].partition('(')[0]}: {curve['parameter']}")
        axis.set_ylabel(f"{found['metric']} {found['unit']}".strip())
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)


def _table(curve: dict[str, Any], found: dict[str, Any]) -> str:
    first = f"{curve['op']}, {found['metric']} {found['unit']}".strip()
    digits = ".2f" if found["unit"] else ".4f"
    rows = [[name, *(format(v, digits) for v in line)] for name, line in curve["values"].items()]
    return scores.markdown([first, *(f"{x:g}" for x in curve["strengths"])], rows)


def _items(ops: str) -> list[str]:
    """The entries of a list, whose commas within parentheses part arguments."""
    items, depth = [""], 0
    for letter in ops:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return items


def _sweep(item: str, points: int) -> Sweep:
    name, _, rest = item.partition("(")
    first, comma, others = rest.rpartition(")")[0].partition(",")
    low, dots, high = first.partition("..")

    def at(strength: Any) -> Operation:
        return degrade.parse(f"{name}({strength}{comma}{others})")[0]

    if not dots:
        degrade.parse(item)  # what else is wrong with it comes first
        raise UserError(f"--ops {item!r} has no range of strengths: write one, as in noise(0..75).")
    start, end = (at(x).args[0].low for x in (low, high))
    strengths = np.linspace(start, end, points)
    parameter = degrade.KINDS[name.strip()].parameters[0]
    if parameter.whole:
        strengths = np.round(strengths)
    strengths = tuple(dict.fromkeys(float(f"{x:.6g}") for x in strengths))
    return Sweep(item, parameter.name, strengths, tuple(map(at, strengths)))


def _metric(workdirs: Sequence[str | Path]) -> str:
    """By what runs are measured, without loading them."""
    found = {str(workdir): _metric_of(workdir) for workdir in workdirs}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{workdir} by {metric}" for workdir, metric in found.items())
        raise UserError(f"Runs that are measured alike go together, not {told}.")
    return next(iter(found.values()))


def _metric_of(workdir: str | Path) -> str:
    config = configs.of_run(workdir)
    method = methods.load(config.method)
    if config.task == "inpaint":
        raise UserError(f"{workdir} fills holes: what it is given is damaged already.")
    if hasattr(method, "predict"):
        return "accuracy"
    able = ("restore", "translate", "encode")
    if not any(hasattr(method, function) for function in able):
        raise UserError(
            f"{workdir}: the method {config.method!r} takes no images that could be damaged: give "
            "runs that classify, restore, translate, or encode and decode."
        )
    return "psnr"


def _names(workdirs: Sequence[str | Path]) -> list[str]:
    """What the runs are called: their folders, as far as these differ."""
    short = [Path(workdir).name for workdir in workdirs]
    if len(set(map(str, workdirs))) < len(workdirs):
        raise UserError("Name each run once.")
    return short if len({*short, DAMAGED}) == len(short) + 1 else [str(w) for w in workdirs]


def _damaged_name(real: dict[str, str], name: str) -> str:
    """One for all runs of the same held-out images."""
    first = next(other for other in real if real[other] == real[name])
    return DAMAGED if first == next(iter(real)) else f"{DAMAGED} ({first})"


def _measured(
    run: runs.Run,
    held: configured.HeldOut,
    n: int,
    asked: Sequence[Sweep],
    seed: int,
) -> list[dict[str, list[float]]]:
    """Of each sweep {metric: a mean for each strength}, over n held-out images."""
    layout = parallel.layout("jit", jax.local_devices())
    state = layout.place_state(run.state)
    step = layout.replicated(functools.partial(_judged, run))
    damages = [[_damage(operation) for operation in sweep.operations] for sweep in asked]
    sums: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    batches = tqdm(some(held, n), str(run.workdir), leave=False, delay=2, disable=None)
    for batch in batches:
        fields = _fields(run, batch)
        seeds = np.stack([np.full_like(batch["index"], seed), batch["index"]], 1)
        for i, sweep in enumerate(damages):
            for j, damage in enumerate(sweep):
                whole = {**fields, "damaged": damage(fields["source"], seeds)}
                whole = layout.place_whole(parallel.padded(whole, len(layout.devices)))
                total = sums.setdefault((i, j), {})
                for name, pair in step(state, whole).items():
                    total[name] = total.get(name, 0) + np.asarray(pair, np.float64)
    means = {place: {k: float(s / c) for k, (s, c) in x.items()} for place, x in sums.items()}
    return [
        {name: [means[i, j][name] for j in range(len(sweep))] for name in means[i, 0]}
        for i, sweep in enumerate(damages)
    ]


def _fields(run: runs.Run, batch: Batch) -> dict[str, np.ndarray]:
    """`source`, the undamaged image, `truth`, and what else the method reads."""
    if "target" in batch:
        pair = batch["target"], batch["target"]
    elif hasattr(run.method, "translate"):
        source, target = DIRECTIONS[run.config.eval.direction]
        if not {source, target} <= batch.keys():
            raise UserError(
                f"{run.workdir} translates, and its held-out images have no known truth to "
                "measure by."
            )
        pair = batch[source], batch[target]
    else:
        pair = batch["image"], batch["image"]
    rest = {name: batch[name] for name in ("index", "valid", "label") if name in batch}
    return {"source": pair[0], "truth": pair[1], **rest}


def _damage(operation: Operation) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(B, H, W, C) float32 and seeds (B, 2) -> the damaged, compiled for each shape."""
    tf = data.tensorflow()
    compiled = tf.function(functools.partial(degrade.batch, (operation,)), autograph=False)
    return lambda images, seeds: compiled(tf.constant(images), tf.constant(seeds)).numpy()


def _judged(run: runs.Run, state: Any, batch: Batch) -> dict[str, Array]:
    """{metric: (sum, count)} of the valid examples."""
    method, spec, damaged, valid = run.method, run.spec, batch["damaged"], batch["valid"]
    if hasattr(method, "restore"):
        return _near(batch, damaged, method.restore(spec, state, damaged))
    damaged = jnp.clip(jnp.round((damaged + 1) * 127.5), 0, 255) / 127.5 - 1
    if hasattr(method, "predict"):
        logits, _ = method.predict(spec, state, damaged)
        right = (logits.argmax(-1) == batch["label"]) * valid
        return {"accuracy": jnp.stack([right.sum(), valid.sum()])}
    if hasattr(method, "translate"):
        direction = run.config.eval.direction
        return _near(batch, damaged, method.translate(spec, state, damaged, direction=direction))
    seen = {**batch, "image": damaged}
    return _near(batch, damaged, method.decode(spec, state, method.encode(spec, state, seen), seen))


def _near(batch: Batch, damaged: Array, made: Array) -> dict[str, Array]:
    compared = {"": made, "copied_": jnp.clip(damaged, -1, 1)}
    found = translation.paired_sums(batch["truth"], batch["valid"], compared)
    return {name: jnp.stack(found[name]) for name in ("psnr", "copied_psnr")}
