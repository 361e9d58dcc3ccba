"""Images of any size through translators, by the command line: what is in each file, and whose."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli, methods, runs, train
from aigc_jax import config as configs
from aigc_jax.errors import UserError
from aigc_jax.tiles import spans
from aigc_jax.translation import Translator, check_direction, keywords, translate
from aigc_jax.types import to_uint8
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")

# A translator of the user's own: 4x4 blocks of pixels, each by itself, mixed by two linear layers.
METHOD = """
import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax, jax.numpy as jnp
from flax import struct

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // 4, 4, w // 4, 4, c).swapaxes(2, 3).reshape(b, h // 4, w // 4, -1)
        blocks = nn.Dense(16 * c)(nn.tanh(nn.Dense(24)(blocks)))
        return nn.tanh(blocks.reshape(b, h // 4, w // 4, 4, 4, c).swapaxes(2, 3).reshape(x.shape))

class State(struct.PyTreeNode):
    step: jax.Array
    nets: Any

WAYS = ("a2b", "b2a")

def from_config(config, axis_name=None):
    return Net()

def init_state(spec, rng, batch, frozen=None):
    ways = zip(WAYS, jax.random.split(rng), strict=True)
    return State(jnp.int32(0), {way: spec.init(key, batch["a"]) for way, key in ways})

def train_step(spec, state, batch, rng):
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

def multiple(spec):
    return 4

def sample(spec, state, rng, batch):
    return translate(spec, state, batch["a"])
"""
BOTH_WAYS = """
def translate(spec, state, images, direction="a2b"):
    return spec.apply(state.nets[direction], images)
"""
ONE_WAY = """
DIRECTIONS = ("a2b",)
"""
TO_A_CLASS = """
def translate(spec, state, images, label):
    return spec.apply(state.nets["a2b"], images * (0.1 * label).reshape(-1, 1, 1, 1))
"""


@pytest.fixture(scope="module", autouse=True)
def my_methods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "a_translator").mkdir()
    (folder / "a_translator" / "__init__.py").touch()
    (folder / "a_translator" / "blocks.py").write_text(METHOD + BOTH_WAYS)
    (folder / "a_translator" / "one_way.py").write_text(METHOD + BOTH_WAYS + ONE_WAY)
    (folder / "a_translator" / "classes.py").write_text(METHOD + TO_A_CLASS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def trained(workdir, method="a_translator.blocks", **fields):
    config = configs.default()
    with config.unlocked():
        config.update(method=method, task="unpaired", image_size=8, batch_size=8, channels=3)
        config.update(num_train_steps=1, log_every=0, sample_every=0)
        config.data.update(a="digits", b="digits")
        config.update(fields)
    train.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def run(my_methods, tmp_path_factory, compiled_once):
    return trained(tmp_path_factory.mktemp("runs") / "colour")


@pytest.fixture(scope="module")
def grey_run(my_methods, tmp_path_factory, compiled_once):
    return trained(tmp_path_factory.mktemp("runs") / "grey", channels=1)


@pytest.fixture(scope="module")
def class_run(my_methods, tmp_path_factory, compiled_once):
    return trained(tmp_path_factory.mktemp("runs") / "classes", method="a_translator.classes")


def aigc(*argv):
    assert cli.main(["translate", *map(str, argv)]) == 0


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def mirrored(place, side):
    """Where a place beyond a side is mirrored to: 0 1 2 3 2 1 0 1 2 ..."""
    period = max(2 * side - 2, 1)
    place %= period
    return place if place < side else period - place


def by_hand(workdir, image, direction="a2b", **told):
    """The method's own function on one padded image, pixel by pixel."""
    run, (height, width) = runs.load(workdir), image.shape[:2]
    rows = [mirrored(y, height) for y in range(-(-height // 4) * 4)]
    columns = [mirrored(x, width) for x in range(-(-width // 4) * 4)]
    padded = image[rows][:, columns].astype(np.float32) / 127.5 - 1
    told = told or {"direction": direction}
    made = jax.jit(functools.partial(run.method.translate, run.spec, **told))(
        run.state, padded[None]
    )
    return np.asarray(to_uint8(made))[0, :height, :width]


def close(x, y):
    """Other programs may round otherwise."""
    return x.shape == y.shape and abs(np.int32(x) - np.int32(y)).max() <= 1


# ---- sizes ----

SIZES = [(1, 1), (2, 3), (1, 9), (5, 7), (16, 16), (17, 30), (3, 64), (15, 29)]


def test_any_size_by_the_command_line(run, tmp_path, capsys):
    images = {f"{'a' if i % 2 else 'b/c'}/{i}.bmp": noise(*size, 3, seed=i) for i, size in
              enumerate(SIZES)}  # fmt: skip
    for name, image in images.items():
        save_png(image, tmp_path / "in" / name)
    capsys.readouterr()
    aigc("--workdir", run, "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert capsys.readouterr().out == f"{len(images)} images translated in {tmp_path / 'out'}\n"
    names = {name: name.replace(".bmp", ".png") for name in images}
    assert written(tmp_path / "out") == sorted(names.values())
    for name, image in images.items():
        made = picture(tmp_path / "out" / names[name])
        assert close(made, by_hand(run, image)), image.shape
        assert np.ptp(made.astype(int) - image) > 20


def test_one_file_and_the_other_way(run, tmp_path):
    save_png(noise(9, 10, 3), tmp_path / "x.png")
    for way in ("a2b", "b2a"):
        out = tmp_path / way
        aigc("--workdir", run, "--input", tmp_path / "x.png", "--out", out, "--direction", way)
        assert written(out) == ["x.png"]
        assert close(picture(out / "x.png"), by_hand(run, noise(9, 10, 3), way))
    assert not close(picture(tmp_path / "a2b" / "x.png"), picture(tmp_path / "b2a" / "x.png"))


def test_many_files_of_a_size_go_through_at_once(run, tmp_path, monkeypatch):
    """All devices share a batch, whose last one is filled up; another size is another program."""
    for i in range(21):
        save_png(noise(6, 8 - i % 2, 3, seed=i), tmp_path / "in" / f"{i}.png")
    save_png(noise(12, 8, 3), tmp_path / "in" / "tall.png")
    monkeypatch.setattr("aigc_jax.anysize._PIXELS", 2 * 8 * 8)
    shapes, batches = [], Translator._batches

    def told(self, function, stack, *args):
        shapes.append(stack.shape)
        return batches(self, function, stack, *args)

    monkeypatch.setattr(Translator, "_batches", told)
    assert translate(run, str(tmp_path / "in"), tmp_path / "out").n == 22
    assert shapes == [(16, 8, 8, 3), (5, 8, 8, 3), (1, 12, 8, 3)]
    for i in range(21):
        image = noise(6, 8 - i % 2, 3, seed=i)
        assert close(picture(tmp_path / "out" / f"{i}.png"), by_hand(run, image))


# ---- kinds of files ----


def test_grey_and_colour_become_what_the_run_reads(run, grey_run, tmp_path):
    grey, colour = noise(10, 6, 1), noise(10, 6, 3, seed=1)
    save_png(grey, tmp_path / "in" / "grey.png")
    save_png(colour, tmp_path / "in" / "colour.png")
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(tmp_path / "in" / "deep.png")
    turned, exif = Image.fromarray(np.rot90(colour)), Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    turned.save(tmp_path / "in" / "turned.png", exif=exif)
    luma = np.asarray(Image.fromarray(colour).convert("L"))[..., None]
    for workdir, channels in ((run, 3), (grey_run, 1)):
        out = tmp_path / f"{channels}"
        aigc("--workdir", workdir, "--input", tmp_path / "in", "--out", out)
        reads = {"grey": grey.repeat(channels, 2), "colour": colour if channels == 3 else luma}
        reads |= {"deep": reads["grey"], "turned": reads["colour"]}
        for name, image in reads.items():
            made = picture(out / f"{name}.png")
            assert made.shape == (10, 6, channels)
            assert close(made, by_hand(workdir, image)), name


def test_to_colour_a_run_is_given_what_it_was_trained_on(tmp_path):
    """Grey of equal channels, whatever a file holds; the way back colours, as they are."""
    workdir = trained(tmp_path / "run", task="colorize", data={"a": "", "b": ""})
    image = noise(9, 14, 3)
    luma = np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, 2)
    save_png(image, tmp_path / "x.png")
    cases = [("a2b", [], luma), ("b2a", [], image), ("a2b", ["--pairs"], luma[:, :7]),
             ("b2a", ["--pairs"], image[:, 7:])]  # fmt: skip
    for i, (way, flags, read) in enumerate(cases):
        out = tmp_path / str(i)
        aigc("--workdir", workdir, "--input", tmp_path / "x.png", "--out", out,
             "--direction", way, *flags)  # fmt: skip
        assert close(picture(out / "x.png"), by_hand(workdir, read, way)), (way, flags)


def test_what_is_transparent_is_white(run, tmp_path):
    image, alpha = noise(6, 9, 3), noise(6, 9, 1, seed=1)
    alpha[:3] = 0
    share = alpha / 255
    white = np.round(image * share + 255 * (1 - share)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    pixels = np.concatenate([image, alpha], -1)
    Image.fromarray(pixels).save(tmp_path / "in" / "rgba.png")
    palette = Image.new("P", (9, 6), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "in" / "palette.png", transparency=1)
    Image.new("L", (9, 6), 7).save(tmp_path / "in" / "key.png", transparency=7)
    translate(run, str(tmp_path / "in"), tmp_path / "out")
    blank = np.full_like(image, 255)
    for name, seen in (("rgba", white), ("palette", blank), ("key", blank)):
        made = picture(tmp_path / "out" / f"{name}.png").astype(int)
        assert abs(made - by_hand(run, seen)).max() <= 3, name  # alpha is blended in 8 bits
    assert not close(made, by_hand(run, image))


def test_two_of_one_stem_in_one_folder(run, tmp_path):
    for name in ("x.png", "x.bmp", "y.bmp"):
        save_png(noise(4, 4, 3), tmp_path / "in" / name)
    translate(run, str(tmp_path / "in"), tmp_path / "out")
    assert written(tmp_path / "out") == ["x.bmp.png", "x.png.png", "y.png"]


def test_what_is_no_image_is_named_and_skipped(run, tmp_path, caplog, capsys):
    save_png(noise(40, 40, 3), tmp_path / "in" / "good.png")
    whole = (tmp_path / "in" / "good.png").read_bytes()
    (tmp_path / "in" / "torn.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    aigc("--workdir", run, "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert written(tmp_path / "out") == ["good.png"]
    assert "bad.jpg" in caplog.text and "torn.png" in caplog.text
    told = capsys.readouterr().out
    assert told.startswith("1 images translated") and "no readable image: 2 files" in told
    (tmp_path / "in" / "good.png").unlink()
    with pytest.raises(UserError, match="2 image files, and none can be read"):
        translate(run, str(tmp_path / "in"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- pairs ----


def test_the_half_of_a_pair_that_is_translated(run, tmp_path):
    """The left one is a, unless the run was trained with its halves exchanged."""
    pair = noise(9, 14, 3)
    save_png(pair, tmp_path / "in" / "x.png")
    swapped = trained(tmp_path / "swapped", task="colorize", data={"a": "", "b": "", "swap": True})
    left, right = pair[:, :7], pair[:, 7:]
    for workdir, way, half in ((run, "a2b", left), (run, "b2a", right), (swapped, "a2b", right)):
        out = tmp_path / f"{workdir.name}_{way}"
        aigc("--workdir", workdir, "--input", tmp_path / "in", "--out", out, "--pairs",
             "--direction", way)  # fmt: skip
        assert close(picture(out / "x.png"), by_hand(workdir, half, way))


# ---- classes ----


def test_to_a_class(class_run, tmp_path):
    save_png(noise(5, 6, 3), tmp_path / "x.png")
    for label in (3, 9):
        out = tmp_path / str(label)
        aigc("--workdir", class_run, "--input", tmp_path / "x.png", "--out", out, "--label", label)
        expected = by_hand(class_run, noise(5, 6, 3), label=np.int32([label]))
        assert close(picture(out / "x.png"), expected)
    assert not close(picture(tmp_path / "3" / "x.png"), picture(tmp_path / "9" / "x.png"))


# ---- from Python ----


def test_a_translator_keeps_the_order(run):
    images = [noise(*size, 3, seed=i) for i, size in enumerate([*SIZES, (1, 1), (5, 6)])]
    translator = Translator.of_run(runs.load(run))
    made = translator(images)
    for image, one in zip(images, made, strict=True):
        assert one.dtype == np.uint8 and close(one, by_hand(run, image))
    for one, again in zip(made, translator(images, batch_size=3), strict=True):
        assert close(one, again)
    assert translator([]) == []


# ---- tiles ----


@pytest.mark.parametrize(("side", "tile", "multiple"), [
    (64, 64, 4), (68, 64, 4), (100, 64, 4), (1000, 64, 4), (4096, 2048, 256), (120, 40, 1),
    (768, 512, 256), (44, 8, 4), (256, 2048, 256), (4, 16, 4),
])  # fmt: skip
def test_tiles_cover_a_side(side, tile, multiple):
    """Every pixel's weights sum to 1; none jumps where a tile begins or ends."""
    found = spans(side, tile, multiple)
    whole = np.zeros((len(found), side))
    for row, span in zip(whole, found, strict=True):
        assert span.start % multiple == 0 and len(span.weight) == min(side, tile)
        row[span.slice] = span.weight
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-6)
    overlap = max(multiple, tile // 8 // multiple * multiple)
    assert abs(np.diff(whole, axis=1)).max(initial=0) <= 1.001 / (overlap + 1)
    assert len(found) == 1 or whole.min() >= 0


@pytest.mark.parametrize("size", [(40, 40), (45, 17), (13, 70), (33, 34), (3, 70), (70, 4)])
def test_tiles_equal_the_whole_where_a_network_sees_blocks(run, size):
    """They start where the network's own blocks do."""
    image = noise(*size, 3)
    tiled = Translator.of_run(runs.load(run), tile=18)  # 16, the multiple of 4 below
    (made,) = tiled([image])
    assert close(made, by_hand(run, image))


def smooth(variables, images):
    """Each pixel the mean of 9x9, of zeros beyond the border: what a tile's border gets wrong."""
    kernel = jnp.ones((9, 9, 1, 3)) / 81
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )  # fmt: skip


def test_there_are_no_seams():
    """What differs from the whole is blended away: nowhere a step as at the border of a tile."""
    y, x = np.mgrid[:150, :170]
    image = np.stack([200 + 40 * np.sin(y / 9), 200 + 40 * np.cos(x / 7), 0 * x + 230], -1)
    image = image.astype(np.uint8)
    (whole,) = Translator(smooth, {}, channels=3)([image])
    (tiled,) = Translator(smooth, {}, channels=3, tile=64)([image])
    assert whole.shape == tiled.shape == image.shape
    inner = np.s_[6:-6, 6:-6]
    steps = [max(abs(np.diff(x[inner].astype(int), axis=axis)).max() for axis in (0, 1))
             for x in (whole, tiled)]  # fmt: skip
    # A tile's own border falls from 230 to about half of it within 5 pixels: 12 levels a pixel.
    assert steps[1] <= steps[0] + 8
    assert np.mean(whole == tiled) > 0.5


def test_a_norm_of_its_own_in_every_tile_leaves_no_seam():
    """Instance norm differs from tile to tile: from one to the next it goes over slowly."""

    def normed(variables, images):
        mean = images.mean((1, 2), keepdims=True)
        return 0.2 * (images - mean) / (images.std((1, 2), keepdims=True) + 1e-5)

    image = np.linspace(0, 255, 500)[None, :, None].repeat(64, 0).repeat(3, 2).astype(np.uint8)
    (tiled,) = Translator(normed, {}, channels=3, tile=128)([image])
    jumps = abs(np.diff(tiled.astype(int), axis=1))
    assert np.ptp(tiled) > 60 and jumps.max() < 8


# ---- published weights ----


def torch_generator(torch, blocks=1, width=4):
    """The layers of a residual generator in PyTorch's order, so that their keys are the files'."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, dim):
            super().__init__()
            pad, norm = nn.ReflectionPad2d(1), nn.InstanceNorm2d(dim)
            layers = [pad, nn.Conv2d(dim, dim, 3), norm, nn.ReLU(), pad, nn.Conv2d(dim, dim, 3)]
            self.conv_block = nn.Sequential(*layers, norm)

        def forward(self, x):
            return x + self.conv_block(x)

    def normed(layer, dim):
        return [layer, nn.InstanceNorm2d(dim), nn.ReLU()]

    w = width
    layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(3, w, 7), w)]
    for dim in (w, 2 * w):
        layers += normed(nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1), 2 * dim)
    layers += [Block(4 * w) for _ in range(blocks)]
    for dim in (4 * w, 2 * w):
        up = nn.ConvTranspose2d(dim, dim // 2, 3, stride=2, padding=1, output_padding=1)
        layers += normed(up, dim // 2)
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()]
    holder = nn.Module()
    holder.model = nn.Sequential(*layers)
    return holder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(file, what PyTorch writes for an image)"""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch_generator(torch)
    path = tmp_path_factory.mktemp("weights") / "latest_net_G_A.pth"
    torch.save(net.state_dict(), path)

    def write(image):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            y = net.model((x - 0.5) / 0.5)[0].permute(1, 2, 0).numpy()
        return ((y + 1) / 2.0 * 255.0).astype(np.uint8)

    return path, write


def test_published_weights_write_what_pytorch_would(published, tmp_path):
    path, write = published
    images = [noise(16, 24, 3), noise(20, 16, 3, seed=1)]
    for i, image in enumerate(images):
        save_png(image, tmp_path / "in" / f"{i}.png")
    aigc("--weights", path, "--input", tmp_path / "in", "--out", tmp_path / "out")
    expected, made = (
        [write(image) for image in images],
        [picture(tmp_path / "out" / f"{i}.png") for i in range(2)],
    )
    for theirs, ours in zip(expected, made, strict=True):
        assert close(ours, theirs) and np.ptp(theirs) > 60
        assert np.mean(ours == theirs) > 0.99  # cut off as there, not rounded: that would be half


def test_halves_by_published_weights(published, tmp_path):
    """The left one unless the direction says otherwise; each is translated the same way."""
    path, write = published
    pair = noise(16, 32, 3)
    save_png(pair, tmp_path / "x.png")
    for flags, half in (([], pair[:, :16]), (["--direction=a2b"], pair[:, :16]),
                        (["--direction=b2a"], pair[:, 16:])):  # fmt: skip
        out = tmp_path / f"out{flags}"
        aigc("--weights", path, "--input", tmp_path / "x.png", "--out", out, "--pairs", *flags)
        assert close(picture(out / "x.png"), write(half))


@pytest.mark.parametrize(("taken", "made"), [(2, 3), (3, 5)])
def test_published_weights_of_other_channels(published, tmp_path, taken, made):
    torch = pytest.importorskip("torch")
    state = torch.load(published[0])
    state["model.1.weight"] = torch.zeros(4, taken, 7, 7)
    last = [key for key in state if key.endswith(".weight")][-1]
    state |= {last: torch.zeros(made, 4, 7, 7), last.replace("weight", "bias"): torch.zeros(made)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=f"net.pth: it makes {made} channels of {taken}"):
        Translator.of_weights(tmp_path / "net.pth")


# ---- mistakes ----


def test_a_direction_that_a_method_lacks_is_told_before_anything_is_read():
    config = configs.default()
    config.method = "a_translator.one_way"
    assert keywords(config, None, None) == {"direction": "a2b"}
    with pytest.raises(UserError, match=r"--direction b2a: .* 'one_way' translates a2b alone"):
        keywords(config, "b2a", None)
    check_direction(methods.load("cyclegan"), "b2a")


MISTAKES = {
    "direction": ("--workdir={run} --direction=a2c", ["'a2c'", "a2b or b2a"]),
    "no such input": ("--workdir={run} --input={nowhere}", ["{nowhere}", "no such"]),
    "no images": ("--workdir={run} --input={empty}", ["{empty}", "no images"]),
    "none readable": ("--workdir={run} --input={bad}", ["{bad}", "1 image files", "none"]),
    "taken": ("--workdir={run} --out={in}", ["{in}", "not empty"]),
    "neither": ("", ["--workdir", "--weights"]),
    "both": ("--workdir={run} --weights={file}", ["--workdir", "--weights", "one of them"]),
    "no run": ("--workdir={empty}", ["{empty}", "config.json"]),
    "no weights": ("--weights={nowhere}", ["{nowhere}"]),
    "not weights": ("--weights={file}", ["{file}"]),
    "a weight file's direction": ("--weights={file} --direction=b2a", ["--direction b2a"]),
    "a weight file's label": ("--weights={file} --label=1", ["--label 1"]),
    "a weight file's step": ("--weights={file} --step=1", ["--step 1"]),
    "an unknown half": (
        "--weights={file} --pairs --direction=a2c",
        ["'a2c'", "a2b or b2a"],
    ),
    "odd pairs": ("--workdir={run} --pairs --input={odd}", ["{odd}/x.png", "15 pixels wide"]),
    "label": ("--workdir={run} --label=3", ["--label 3", "'a_translator.blocks'"]),
    "no label": ("--workdir={classes}", ["'a_translator.classes'", "--label"]),
    "another label": ("--workdir={classes} --label=10", ["--label 10", "0 to 9"]),
    "a class's direction": (
        "--workdir={classes} --label=1 --direction=b2a",
        ["--direction b2a", "'classes'"],
    ),
    "tile": ("--workdir={run} --tile=7", ["--tile 7", "8 or more"]),
    "step": ("--workdir={run} --step=7", ["step 7"]),
    "a classifier": ("--workdir={judge}", ["'classifier'", "doesn't translate", "cyclegan"]),
}


@pytest.fixture(scope="module")
def places(run, class_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no weights")
    save_png(noise(4, 4, 3), folder / "in" / "x.png")
    save_png(noise(6, 15, 3), folder / "odd" / "x.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_text("no image")
    config = configs.load("digits_classifier:smoke")
    with config.unlocked():
        config.image_size, config.model.width, config.num_train_steps = 8, 4, 1
        config.steps_per_dispatch = 1
    train.run(config, folder / "judge")
    named = {name: folder / name for name in ("empty", "file", "in", "odd", "bad", "judge")}
    return {**named, "nowhere": folder / "nowhere", "run": run, "classes": class_run}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, places, tmp_path, capsys):
    flags, words = MISTAKES[mistake]
    argv = flags.format(**places).split()
    for name, value in (("--input", places["in"]), ("--out", tmp_path / "out")):
        if not any(flag.startswith(name) for flag in argv):
            argv.append(f"{name}={value}")
    capsys.readouterr()
    assert cli.main(["translate", *argv]) == 2
    line = capsys.readouterr().err
    assert line.startswith("aigc translate: ") and line.count("\n") == 1, line
    for word in words:
        assert word.format(**places) in line, line
    assert not (tmp_path / "out").exists()


# What other commands say of a run that translates.
ELSEWHERE = {
    "sample": "sample --workdir={run} --out={new}.png",
    "reconstruct": "reconstruct --workdir={run} --input={in} --out={new}",
    "interpolate": "interpolate --workdir={run} --out={new}.png",
    "stats": "stats {run} --out={new}.npz --extractor={judge}",
}


@pytest.mark.parametrize("verb", ELSEWHERE)
def test_other_commands_name_this_one(verb, places, tmp_path, capsys):
    argv = ELSEWHERE[verb].format(**places, new=tmp_path / "new").split()
    capsys.readouterr()
    assert cli.main(argv) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"aigc {verb}: ") and line.count("\n") == 1
    assert "'blocks'" in line or "'a_translator.blocks'" in line
    assert "aigc translate" in line
    assert not list(tmp_path.iterdir())


def test_the_last_line_of_training_names_it(run):
    assert f"Next: aigc translate --workdir {run} --input FOLDER" in train.farewell(run)
