"""What the tests of `aigc restore` and `aigc inpaint` share: tiny runs, image files, and truths."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from aigc_jax import cli, runs, train
from aigc_jax import config as configs
from aigc_jax.methods import restoration
from aigc_jax.types import to_uint8

UNET = {"name": "unet", "width": 4, "levels": 1, "blocks": 1, "shuffle": 2}
DNCNN = {"name": "dncnn", "depth": 3, "width": 4, "norm": "none"}


def trained(workdir, model, task="restore", channels=3, **data):
    """A run of two steps, fast enough to leave its zero last layer behind."""
    config = configs.default()
    config.method = "restoration"
    config.update(restoration.defaults())
    config.task = task
    config.model = ConfigDict(model)
    config.update(image_size=8, batch_size=8, channels=channels)
    config.update(num_train_steps=2, log_every=0, sample_every=0)
    config.data.update(source="digits", **data)
    config.optimizer.lr = 0.05
    train.run(configs.finish(config), workdir)
    return workdir


def run_of(name, workdir, size, channels, classes=True, **fields):
    """One of a shipped config, tiny, after a step."""
    config = configs.load(f"{name}:smoke")
    with config.unlocked():
        config.update(image_size=size, channels=channels, num_train_steps=1, steps_per_dispatch=1)
        config.task = "label" if classes else "generate"
        config.eval.extractor = ""
        for path, value in fields.items():
            section, _, last = path.rpartition("__")
            (config[section] if section else config)[last] = value
    train.run(config, workdir)
    return workdir


def planned(workdir, name):
    """No more than a run's config: what is told before anything is loaded."""
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.load(name).to_json_best_effort())
    return workdir


def aigc(*argv):
    assert cli.main(list(map(str, argv))) == 0


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, channels):
    """Waves of another phase in each channel, black and white among them."""
    y, x, c = np.ogrid[:height, :width, :channels]
    waves = np.sin(y / 3 + c) + np.cos(x / 4 - c)
    return np.clip(127.5 + 90 * waves, 0, 255).round().astype(np.uint8)


def picture(path):
    """(H, W, C) of a PNG of 8 bits, grey or colour."""
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode in ("L", "RGB")
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def floats(image):
    return image.astype(np.float32) / 127.5 - 1


def padded(image, multiple):
    """To the next multiples, mirrored at the right and bottom: 0 1 2 3 2 1 0 1 2 ..."""

    def places(side):
        period = max(2 * side - 2, 1)
        found = np.arange(-(-side // multiple) * multiple) % period
        return np.where(found < side, found, period - found)

    return image[places(image.shape[0])][:, places(image.shape[1])]


def by_method(workdir, image, mask=None):
    """(H, W, C) uint8 that the method makes of one image (H, W, C) float32."""
    run, (height, width) = runs.load(workdir), image.shape[:2]
    multiple = run.method.multiple(run.spec)
    args = [padded(x, multiple)[None] for x in (image, mask) if x is not None]
    made = _compiled(run.method.restore, run.spec)(run.state, *args)
    return np.asarray(to_uint8(made))[0, :height, :width]


@functools.cache
def _compiled(function, spec):
    return jax.jit(functools.partial(function, spec))


def close(x, y):
    """Other programs may round otherwise."""
    return x.shape == y.shape and abs(np.int32(x) - np.int32(y)).max() <= 1


def psnr(x, y):
    """Of uint8 images, in dB."""
    return 10 * np.log10(255**2 / np.mean((np.float64(x) - np.float64(y)) ** 2))


def mistake(verb, argv, words, capsys):
    """The one line that the command line says of it."""
    capsys.readouterr()
    assert cli.main([verb, *map(str, argv)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"aigc {verb}: ") and line.count("\n") == 1, line
    for word in words:
        assert word in line, line
