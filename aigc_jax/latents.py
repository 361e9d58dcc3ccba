"""Through the latents of a run and back: images reconstructed, and walks from one to another."""

import dataclasses
import functools
import itertools
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import __version__, methods, pair_scores, parallel, runs, sampling
from aigc_jax import config as configs
from aigc_jax.data import configured, pictures
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.types import Batch, to_uint8
from aigc_jax.writers import save_png

SCORES = "scores.json"
_BATCH_SIZE = 64
_LACKS = {
    "encode": "can't encode images",
    "decode": "can't decode latents",
    "latents": "has no latents to walk between",
    "translate": "doesn't translate images",
    "restore": "doesn't restore images",
}


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` did.

    Attributes:
      scores: {"psnr": {"value": ...}, "ssim": ..., "images": {name: {"psnr": ..., "ssim": ...}},
        "provenance": ...}, as in scores.json.
      resized: how many of the images were of another size than the run's.
      skipped: the files that are no readable images.
    """

    scores: dict[str, Any]
    resized: int
    skipped: list[str]

    def told(self, most: int = 20) -> str:
        """A line for each image, `most` of them, the means, and what was done to the files."""
        images = self.scores["images"]
        means = {name: self.scores[name]["value"] for name in ("psnr", "ssim")}
        lines = [f"{name}  {_line(score)}" for name, score in list(images.items())[:most]]
        if len(images) > most:
            lines.append(f"... and {len(images) - most} more, see {SCORES}")
        lines.append(f"Mean of {len(images)}: {_line(means)}")
        if self.resized:
            lines.append(
                f"Resized to the run's size, the central square of each, as in training: "
                f"{self.resized} of {len(images)} images."
            )
        lines += pictures.remarks(self.skipped)
        return "\n".join(lines)


def _line(score: dict[str, float | None]) -> str:
    psnr_told = "inf" if score["psnr"] is None else f"{score['psnr']:.2f} dB"
    return f"PSNR {psnr_told}  SSIM {score['ssim']:.4f}"


class Coder:
    """A run's `encode` and `decode`, compiled once, on all of this process's devices.

    Args:
      batch_size: images at once, rounded up to as many for each device.
    """

    def __init__(self, run: runs.Run, batch_size: int = _BATCH_SIZE) -> None:
        self._layout = parallel.layout("jit", jax.local_devices())
        self._state = self._layout.place_state(run.state)
        devices = len(self._layout.devices)
        self.batch_size = -(-batch_size // devices) * devices

        def encode(state: Any, batch: Batch) -> jax.Array:
            return run.method.encode(run.spec, state, batch)

        def decode(state: Any, batch: Batch) -> jax.Array:
            return to_uint8(run.method.decode(run.spec, state, batch["latent"], batch))

        self._encode, self._decode = map(self._layout.replicated, (encode, decode))

    def encode(self, batch: Batch) -> np.ndarray:
        """(B, ...) latents of a numpy batch: `index`, `image` in [-1, 1], `label` where needed."""
        return self._in_parts(self._encode, batch)

    def decode(self, latents: np.ndarray, batch: Batch) -> np.ndarray:
        """(B, H, W, C) uint8 of latents (B, ...); `batch` has `index`, and `label` where needed."""
        return self._in_parts(self._decode, {**batch, "latent": latents})

    def _in_parts(self, function: Callable[[Any, Batch], jax.Array], batch: Batch) -> np.ndarray:
        parts, n = [], len(batch["index"])
        for start in range(0, n, self.batch_size):
            part = {name: x[start : start + self.batch_size] for name, x in batch.items()}
            placed = self._layout.place_whole(parallel.padded(part, self.batch_size))
            parts.append(np.asarray(function(self._state, placed)))
        return np.concatenate(parts)[:n]


def reconstruct(
    workdir: str | Path,
    source: str,
    out: str | Path,
    label: int | None = None,
    step: int | None = None,
) -> Reconstruction:
    """Encodes and decodes images, and writes `input | reconstruction` of each, (H, 2 W), to a PNG.

    Images are cropped to their central square and resized to the run's size, as in training. Each
    PNG has its input's path below `source`. scores.json beside them holds PSNR in dB and SSIM of
    the 8-bit images, and their means; the PSNR of an exact copy is null, and no part of the mean.

    Args:
      source: a folder or an image file.
      out: a new or empty folder.
      label: of all images; None: by subfolders named after the classes, if the run is conditional.
      step: of the checkpoint; None: the newest.

    Raises:
      UserError: the method doesn't encode or decode; no readable image; no label; `out` is taken.
    """
    config = configs.of_run(workdir)
    check_method(config.method, "encode", "decode")
    check_untold(config)
    sampling.check_folder(out)
    files = _find(source, workdir, config, label)
    reader = pictures.Reader(config.image_size, config.channels)
    stacks = reader.stacks(files, _BATCH_SIZE)
    first = next(stacks, None)  # read before a checkpoint is
    if first is None:
        raise UserError(f"--input {source}: {len(files)} image files, and none can be read.")
    run = runs.load(workdir, step)
    coder = Coder(run, min(_BATCH_SIZE, len(files)))
    quality, places, found = pair_scores.Quality(_BATCH_SIZE), targets(files), {}
    for kept, images in itertools.chain([first], stacks):
        batch = _batch(kept, images)
        decoded = coder.decode(coder.encode(batch), batch)
        for file, pair in zip(kept, np.concatenate([images, decoded], 2), strict=True):
            save_png(pair, Path(out) / places[file])
        found |= zip([file.name for file in kept], quality(images, decoded), strict=True)
    made = {"run": f"{workdir} step {run.step}", "input": source, "skipped": reader.skipped}
    scores = pair_scores.summary(found) | {"provenance": made | {"version": __version__}}
    runs.write_json(Path(out) / SCORES, scores)
    return Reconstruction(scores, reader.resized, reader.skipped)


def interpolate(
    workdir: str | Path,
    rows: int = 8,
    columns: int = 10,
    *,
    label: int | None = None,
    seed: int = 0,
    source: str | None = None,
    step: int | None = None,
) -> np.ndarray:
    """Rows of images on the way from one latent to another, see `slerp`.

    A conditional run keeps one class a row, each in turn.

    Args:
      label: the class of all rows.
      seed: of the latents; with `source`, of the choice of images.
      source: a folder of images, between whose latents each row then walks, two of one class: its
        first and its last column are their reconstructions. None: between draws of the prior.
      step: of the checkpoint; None: the newest.

    Returns:
      (rows, columns, H, W, C) uint8.

    Raises:
      UserError: the method has no such functions; a label that the run doesn't know; no two
        readable images of a class.
    """
    config = configs.of_run(workdir)
    check_method(config.method, "latents", "decode", *["encode"] * (source is not None))
    check_untold(config)
    labels = sampling.class_labels(config, rows, label)
    chosen = None
    if source is not None:
        reader = pictures.Reader(config.image_size, config.channels)
        chosen = _two_a_row(_find(source, workdir, config, label), rows, seed, reader)
    run = runs.load(workdir, step)
    coder = Coder(run, min(_BATCH_SIZE, rows * columns))
    if chosen:
        batch = _batch(*chosen)
        ends = coder.encode(batch)
        labels = None if labels is None else batch["label"][0::2]
    else:
        ends = _drawn(run, labels, rows, seed)
    walks = slerp(ends[0::2], ends[1::2], columns)
    batch = {"index": np.arange(rows * columns, dtype=np.int32)}
    if labels is not None:
        batch["label"] = np.repeat(labels, columns)
    images = coder.decode(walks.reshape(rows * columns, *ends.shape[1:]), batch)
    return images.reshape(rows, columns, *images.shape[1:])


def slerp(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Along an arc from each latent to another, in equal angles, both ends included.

    Spherical interpolation (Shoemake 1985; White 2016, "Sampling Generative Networks", sec. 2.1):
    sin((1 - t) w) / sin w start + sin(t w) / sin w end, with w the angle between the two. Gaussian
    latents of many dimensions lie near a sphere, and a straight line leaves it for the middle,
    where a network has hardly seen any. Two of the same or of opposite direction, between which
    there is not one arc, are joined by a straight line.

    Args:
      start, end: (B, ...) float.
      steps: 2 or more.

    Returns:
      (B, steps, ...) of the dtype of `start`.
    """
    a, b = (x.reshape(len(x), 1, -1).astype(np.float64) for x in (start, end))
    u, v = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30) for x in (a, b))
    lengths = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (u - v, u + v))
    angle = 2 * np.arctan2(*lengths)  # precise near 0 and pi, where arccos isn't
    t = np.linspace(0, 1, steps).reshape(1, steps, 1)
    straight = np.sin(angle) < 1e-6
    sine = np.where(straight, 1, np.sin(angle))
    of_a = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)
    of_b = np.where(straight, t, np.sin(t * angle) / sine)
    walks = (of_a * a + of_b * b).astype(start.dtype)
    return walks.reshape(len(start), steps, *start.shape[1:])


def check_method(name: str, *needed: str) -> None:
    """UserError, naming the methods that can, where one lacks any of the functions needed."""
    method = methods.load(name)
    missing = next((function for function in needed if not hasattr(method, function)), None)
    does = methods.command(method)
    if missing and does:
        raise UserError(f"The method {name!r} {_LACKS[missing]}: aigc {does} {does}s images.")
    if missing:
        files = pkgutil.iter_modules(methods.__path__)
        known = [file.name for file in files if not file.name.startswith("_")]
        able = [k for k in known if all(hasattr(methods.load(k), f) for f in needed)]
        which = " or ".join(filter(None, (", ".join(able[:-1]), able[-1])))
        raise UserError(f"The method {name!r} {_LACKS[missing]}: take a run of {which}.")


def check_untold(config: ConfigDict) -> None:
    """UserError for a run that has to be told a text, which these commands don't."""
    if configured.reads_captions(config):
        raise UserError(
            'The run draws what a text says, here there is none: aigc sample --text "...".'
        )


def targets(files: Sequence[Picture]) -> dict[Picture, str]:
    """Where each one's PNG goes; two of one stem keep their endings: a.jpg.png, a.bmp.png.

    So does a third whose place one of them takes: a.jpg.png itself goes to a.jpg.png.png.
    """
    places = {file: Path(file.name).with_suffix(".png").as_posix() for file in files}
    while shared := {place for place, n in Counter(places.values()).items() if n > 1}:
        places = {f: f"{f.name}.png" if place in shared else place for f, place in places.items()}
    return places


def _find(source: str, workdir: str | Path, config: ConfigDict, label: int | None) -> list[Picture]:
    """The pictures, labelled where the run is conditional."""
    sampling.class_labels(config, 1, label)
    if config.num_classes and label is None:
        return pictures.find(source, runs.class_names(workdir, config))
    return [dataclasses.replace(file, label=label) for file in pictures.find(source)]


def _batch(files: Sequence[Picture], images: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "index": np.arange(len(images), dtype=np.int32),
        "image": images.astype(np.float32) / 127.5 - 1,
    }
    if files[0].label is not None:
        batch["label"] = np.array([file.label for file in files], np.int32)
    return batch


def _drawn(run: runs.Run, labels: np.ndarray | None, rows: int, seed: int) -> np.ndarray:
    """Two latents a row, (2 * rows, ...), by the run's prior."""
    batch = {"index": np.arange(2 * rows, dtype=np.int32)}
    if labels is not None:
        batch["label"] = np.repeat(labels, 2)
    latents = jax.jit(functools.partial(run.method.latents, run.spec))
    return np.asarray(latents(jax.random.key(seed), batch))


def _two_a_row(
    files: list[Picture], rows: int, seed: int, read: pictures.Reader
) -> tuple[list[Picture], np.ndarray]:
    """Two readable pictures of one class a row, and their images (2 * rows, S, S, C)."""
    images: dict[Picture, np.ndarray | None] = {}
    while True:
        chosen = _choose(files, rows, seed)
        new = [file for file in dict.fromkeys(chosen) if file not in images]
        images |= zip(new, read(new), strict=True)
        if all(images[file] is not None for file in chosen):
            return chosen, np.stack([images[file] for file in chosen])
        files = [file for file in files if file not in images or images[file] is not None]


def _choose(files: list[Picture], rows: int, seed: int) -> list[Picture]:
    groups: dict[int | None, list[Picture]] = {}
    for i in np.random.default_rng(seed).permutation(len(files)):
        groups.setdefault(files[i].label, []).append(files[i])
    several = [groups[label] for label in sorted(groups) if len(groups[label]) > 1]
    if not several:
        raise UserError("--input: a row walks between two images of a class: give 2 or more.")
    turns = [(several[row % len(several)], row // len(several)) for row in range(rows)]
    return [group[(2 * turn + i) % len(group)] for group, turn in turns for i in (0, 1)]
