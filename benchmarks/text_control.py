"""Whether samples show what their captions ask, for combinations seen in training and held out.

    python benchmarks/text_control.py --workdir runs/shapes_text_gan --probe runs/shapes_probe

A run of the task `text` on captioned shapes is measured through a probe (`aigc train
--config=shapes_probe`): the shares of attributes that are right, R-precision and the Frechet
distance of the probe's features, for each split, and the same of real pictures. Where its method
has the knob `guidance`, that is turned: accuracy beside diversity, the mean distance between two
samples of one caption. Writes into --out: `scores.json`, `guidance.png` (the curve) and
`samples.png` (some captions and what is drawn, a row for each guidance). Nothing is trained here.
"""

import argparse
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

import harness  # isort: skip
from aigc_jax import evaluate, networks, parallel, runs
from aigc_jax.data import configured
from aigc_jax.metrics import attributes, protocols
from aigc_jax.runs import Run
from aigc_jax.sample_scores import some
from aigc_jax.sampling import Sampler
from aigc_jax.scores import markdown
from aigc_jax.scoring import Viewer
from aigc_jax.sets import Filled
from aigc_jax.types import Batch

METRICS = ("fid", "attributes", "r_precision")
EACH = 8  # samples of a caption, of which the diversity is
SHOWN = 8  # captions in the grid
GUIDANCE = (-0.75, -0.5, -0.25, 0.0, 0.5, 1.0, 2.0)


def split_scores(run: Run, probe: str, split: str, num: int) -> dict:
    """The records of `METRICS` of a split's captions."""
    run = evaluate.reconfigured(run, extractor=probe, split=split)
    measure = evaluate.Evaluator(run.config, run.method, run.spec, metrics=METRICS, num=num)
    state = parallel.layout("jit", jax.local_devices()).place_state(run.state)
    return measure(state, jax.random.key(0)).scores


def table(scores: dict[str, dict]) -> str:
    """A row for each split's samples, and one for its real pictures."""
    known = {name for found in scores.values() for name in found["attributes"]}
    names = [name for name in attributes.NAMES if name in known]
    rows = []
    for split, found in scores.items():
        shares, ranked, distance = (found[x] for x in ("attributes", "r_precision", "fid"))
        own = [f"{ranked['value']:.3f} +- {ranked['std']:.3f}", f"{distance['value']:.3f}"]
        rows.append([f"{split}, samples", *_shares(names, shares), *own])
        rows.append(
            [f"{split}, real", *_shares(names, shares["real"]), f"{ranked['real']:.3f}", ""]
        )
    return markdown(["captions", *names, "R-precision", "FD"], rows)


def _shares(names: Sequence[str], shares: dict[str, float]) -> list[str]:
    return [f"{100 * shares[name]:.1f}%" if name in shares else "" for name in names]


class Captions:
    """Some held-out captions, each for `EACH` samples in turn."""

    def __init__(self, run: Run, num: int, split: str = "test") -> None:
        run = evaluate.reconfigured(run, split=split)
        held = configured.held_out(run.config)
        batches = list(some(held, num))
        valid = np.concatenate([batch["valid"] for batch in batches]) > 0
        whole = {k: np.concatenate([b[k] for b in batches])[valid] for k in batches[0]}
        self.rows = whole["index"].astype(np.int64)
        self.texts = [_text(x) for x in held.data.fields["caption"].function(self.rows)]
        self.fields = {k: np.repeat(x, EACH, 0) for k, x in whole.items()}
        self.fields["index"] = np.arange(len(self.fields["index"]), dtype=np.int32)

    def batches(self, size: int = 256) -> Iterator[Batch]:
        """All of them, in order."""
        for start in range(0, len(self.fields["index"]), size):
            yield {name: x[start : start + size] for name, x in self.fields.items()}


def _text(caption: str | bytes) -> str:
    return caption.decode() if isinstance(caption, bytes) else caption


def drawn(run: Run, captions: Captions, guidance: float) -> np.ndarray:
    """(captions, EACH, H, W, C) uint8; the same latents at each guidance."""
    sampler = Sampler(run.method, run.spec, guidance=guidance)
    state, rng = sampler.layout.place_state(run.state), jax.random.key(0)
    images = np.concatenate([sampler(state, rng, batch) for batch in captions.batches()])
    return images.reshape(-1, EACH, *images.shape[1:])


def control(images: np.ndarray, captions: Captions, viewer: Viewer) -> dict[str, float]:
    """Accuracy and diversity of the samples of captions, as `drawn` gives them."""
    flat = images.reshape(-1, *images.shape[2:])
    size, channels = flat.shape[1:3], viewer.extractor.channels
    made = lambda batch: flat[batch["index"]]  # noqa: E731
    seen = viewer.see(Filled("samples", len(flat), size, channels, captions.batches, made))
    shares = attributes.shares(seen.readings, seen.asked)
    pixels = images.reshape(len(images), EACH, -1).astype(np.float32) / 127.5 - 1
    return shares | {
        "pixel_distance": _spread(pixels) / np.sqrt(pixels.shape[-1]),
        "feature_distance": _spread(seen.features.reshape(len(images), EACH, -1)),
    }


def _spread(x: np.ndarray) -> float:
    """The mean distance between two of the E vectors (N, E, D) of one caption."""
    pairs = itertools.combinations(range(x.shape[1]), 2)
    return float(np.mean([np.linalg.norm(x[:, i] - x[:, j], axis=-1).mean() for i, j in pairs]))


def plot(curve: dict[float, dict[str, float]], path: Path) -> None:
    """Accuracy and diversity over guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    strengths = list(curve)
    for name in ("shape", "colour", "size", "relation", "count", "all"):
        if name in curve[strengths[0]]:
            left.plot(strengths, [100 * curve[g][name] for g in strengths], "o-", label=name)
    left.set(xlabel="guidance", ylabel="right, %", title="What is asked", ylim=(0, 102))
    left.legend()
    for name in ("pixel_distance", "feature_distance"):
        values = np.array([curve[g][name] for g in strengths])
        at_none = values[np.argmin(np.abs(strengths))]
        right.plot(strengths, values / at_none, "o-", label=name.replace("_", " "))
    right.set(xlabel="guidance", ylabel="as a share of that at 0", title="Diversity")
    right.set_ylim(bottom=0)
    right.legend()
    figure.savefig(path, dpi=120)


def picture(images: dict[float, np.ndarray], texts: Sequence[str], path: Path) -> None:
    """A column for each caption, a row of four samples for each guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(texts), 1.1 + 0.65 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), len(texts), squeeze=False)
    for row, (strength, made) in zip(axes, images.items(), strict=True):
        for ax, few in zip(row, made, strict=False):
            ax.imshow(np.concatenate(list(few[:4]), 1).squeeze(), cmap="gray")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{strength:g}")
    for ax, text in zip(axes[0], texts, strict=False):
        ax.set_title(textwrap.fill(text, 30), fontsize=7)
    figure.savefig(path, dpi=150)


def guided(run: Run, options: argparse.Namespace) -> dict[float, dict[str, float]]:
    """The curve, after its pictures are written."""
    viewer = Viewer(networks.load(options.probe, None, protocols.find("tf1")))
    captions = Captions(run, options.captions)
    images = {g: drawn(run, captions, g) for g in options.guidance}
    curve = {g: control(made, captions, viewer) for g, made in images.items()}
    plot(curve, options.out / "guidance.png")
    shown = {g: made[:SHOWN] for g, made in images.items()}
    picture(shown, captions.texts[:SHOWN], options.out / "samples.png")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a run of the task `text`")
    parser.add_argument("--probe", required=True, help="workdir of a run of shapes_probe")
    parser.add_argument("--out", type=Path, default=Path("text_control"))
    parser.add_argument("--num", type=int, default=10_000, help="captions of each split")
    parser.add_argument("--captions", type=int, default=128, help=f"of {EACH} guided samples each")
    parser.add_argument("--guidance", type=float, nargs="*", default=GUIDANCE)
    parser.add_argument("--splits", nargs="*", default=["test", "novel"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run = runs.load(options.workdir)
    scores = {s: split_scores(run, options.probe, s, options.num) for s in options.splits}
    print(f"{options.workdir}, step {run.step}\n\n{table(scores)}\n")
    curve = {}
    if "guidance" in inspect.signature(run.method.sample).parameters and options.guidance:
        curve = guided(run, options)
        names = list(next(iter(curve.values())))
        rows = [[f"{g:g}", *(f"{found[name]:.3f}" for name in names)] for g, found in curve.items()]
        print(markdown(["guidance", *names], rows))
    told = {"splits": scores, "guidance": {str(g): found for g, found in curve.items()}}
    (options.out / "scores.json").write_text(json.dumps(told, indent=2) + "\n")
    print(f"\nLook at {options.out}. {harness.machine()}")


if __name__ == "__main__":
    main()
