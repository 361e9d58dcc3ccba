"""Data sets of samples: what is written, read again, told apart from real ones, and mixed."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli, runs, sampling
from aigc_jax.data import mixture, sources
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.generated import is_marked, marked
from aigc_jax.errors import UserError
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "gan"
    flags = ["generator.width=4", "discriminator.width=4", "eval.extractor=", "image_size=16"]
    flags = [f"--config.{flag}" for flag in flags]
    assert cli.main(["train", "--config=digits_dcgan:smoke", f"--workdir={workdir}", *flags]) == 0
    return workdir


def sample(workdir, *argv):
    return cli.main(["sample", f"--workdir={workdir}", *map(str, argv)])


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_what_is_written_is_what_is_drawn(workdir, tmp_path, form, monkeypatch):
    from aigc_jax import exporting

    monkeypatch.setattr(exporting, "_SHARD", 100)
    out = tmp_path / "made"
    assert sample(workdir, "--as-dataset", out, "--n=23", "--per-class", f"--format={form}") == 0
    drawn, labels = sampling.generate(runs.load(workdir), 230)
    told = json.loads((out / "manifest.json").read_text())
    assert told["generated"] and told["complete"] and told["num_images"] == 230
    assert (told["step"], told["seed"], told["knobs"]) == (8, 0, {})
    read = sources.load(f"generated:{out}", image_size=16)
    assert read.num_examples == 230 and read.class_names == tuple("0123456789")
    # A folder is read by class, records in the order in which they were drawn.
    order = np.argsort(labels, kind="stable") if form == "folder" else np.arange(230)
    np.testing.assert_array_equal(read.images, drawn[order])
    np.testing.assert_array_equal(read.labels, labels[order])
    assert np.bincount(read.labels).tolist() == [23] * 10
    if form == "tfds":
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(out))
        assert builder.info.splits["train"].num_examples == 230
        assert builder.info.splits["train"].num_shards == 3
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        stored = builder.as_dataset(split="train", read_config=in_order)
        examples = list(tfds.as_numpy(stored))
        np.testing.assert_array_equal([x["label"] for x in examples], labels)
        np.testing.assert_array_equal(np.stack([x["image"] for x in examples]), drawn)


def test_they_are_not_taken_for_real(workdir, tmp_path, capsys):
    out = tmp_path / "made"
    assert sample(workdir, "--as-dataset", out, "--n=12") == 0
    files = sorted(out.rglob("*.png"))
    assert len(files) == 12 and all(map(is_marked, files))
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])).shape, (16, 16))
    with pytest.raises(UserError, match=r"manifest.json says.*: name it generated:DIR"):
        sources.load(f"folder:{out}", image_size=16)
    with pytest.raises(UserError, match="holds images that a model made"):
        sources.load(f"folder:{out / '3'}", image_size=16)  # one class of them
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"\.png is marked"):
        sources.load(f"folder:{out}", image_size=16)
    with pytest.raises(UserError, match=r"no manifest\.json that says what made its images"):
        sources.load(f"generated:{out}", image_size=16)
    mixed = tmp_path / "mixed"
    save_png(np.zeros((16, 16, 1), np.uint8), mixed / "real.png")
    assert sources.load(f"folder:{mixed}", image_size=16).num_examples == 1
    (mixed / "stray.png").write_bytes(files[0].read_bytes())
    with pytest.raises(UserError, match=r"stray\.png is marked"):
        sources.load(f"folder:{mixed}", image_size=16)


def test_a_marked_png_shows_the_same():
    import io

    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    again = Image.open(io.BytesIO(marked(file.getvalue())))
    np.testing.assert_array_equal(np.asarray(again), image)
    again.load()
    assert again.text == {"Software": "aigc_jax: generated"}


def test_a_set_that_was_not_finished(workdir, tmp_path):
    out = tmp_path / "made"
    sample(workdir, "--as-dataset", out, "--n=4")
    told = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(told | {"complete": False}))
    with pytest.raises(UserError, match="was not finished"):
        sources.load(f"generated:{out}", image_size=16)


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--format=zip"], "--format zip: there is no such"),
        (["--per-class", "--label=3"], "--per-class is of all classes"),
        (["--text=a"], "The run reads no texts"),
        (["--label=11"], "--label 11: the run knows the labels 0 to 9"),
    ],
)
def test_mistakes(workdir, tmp_path, argv, line, capsys):
    assert sample(workdir, "--as-dataset", tmp_path / "made", "--n=4", *argv) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def write(folder, names, **told):
    """A folder of a generated image for each name, by class."""
    for i, name in enumerate(names):
        save_png(np.full((16, 16, 1), 10 * i, np.uint8), folder / name / "0.png")
    runs.write_json(folder / "manifest.json", {"generated": True, "complete": True, **told})


def test_classes_are_those_of_the_run(tmp_path):
    names = [str(i) for i in range(12)]
    write(tmp_path / "all", names, class_names=names, format="folder")
    read = sources.load(f"generated:{tmp_path / 'all'}", image_size=16)
    assert read.class_names == tuple(names)
    assert read.images[:, 0, 0, 0].tolist() == (10 * read.labels).tolist()
    write(tmp_path / "some", ["3", "10"], class_names=names, format="folder")
    read = sources.load(f"generated:{tmp_path / 'some'}", image_size=16)
    assert read.class_names == tuple(names) and sorted(read.labels) == [3, 10]


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_a_part_of_the_real_images_is_no_part_of_these(workdir, tmp_path, form):
    assert sample(workdir, "--as-dataset", tmp_path / "made", "--n=20", f"--format={form}") == 0
    for split in ("train", "train[:5]", "train[:10%]"):
        read = sources.load(f"generated:{tmp_path / 'made'}", split=split, image_size=16)
        assert read.num_examples == 20


def test_manifests_of_others(tmp_path):
    for text in ("[1]", '{"generated": "no"}', "nothing"):
        write(tmp_path / "folder", "ab")
        (tmp_path / "folder" / "manifest.json").write_text(text)
        assert sources.load(f"folder:{tmp_path / 'folder'}", image_size=16).num_examples == 2
        with pytest.raises(UserError, match=r"has no manifest\.json that says what made"):
            sources.load(f"generated:{tmp_path / 'folder'}", image_size=16)
    write(tmp_path / "records", "a", format="tfds")
    with pytest.raises(UserError, match="was not finished"):
        sources.load(f"generated:{tmp_path / 'records'}", image_size=16)


def test_captions_stay_with_their_images(tmp_path, monkeypatch):
    """Where some are dropped, the texts are no longer in turn."""
    from collections import Counter
    from types import SimpleNamespace

    from aigc_jax import exporting

    def chunks(run, n, **asked):
        for start in range(0, n, 8):
            images = np.arange(start, start + 8, dtype=np.uint8)
            yield start, np.tile(images[:, None, None, None], (1, 4, 4, 1)), None

    class Sieve(SimpleNamespace):
        def __call__(self, images, labels):
            return images[:, 0, 0, 0] % 4 != 2

    monkeypatch.setattr(exporting.sampling, "chunks", chunks)
    monkeypatch.setattr(exporting.sifting, "sieve", lambda *_: Sieve(dropped=Counter(some=1)))
    config = SimpleNamespace(num_classes=0, method="gan")
    run = SimpleNamespace(config=config, workdir=tmp_path, step=0)
    monkeypatch.setattr(exporting.sampling, "class_labels", lambda *_: None)
    exporting.export(run, tmp_path / "out", 10, text=("even", "odd"), keep="some")
    lines = map(json.loads, (tmp_path / "out" / "metadata.jsonl").read_text().splitlines())
    for line in lines:
        with Image.open(tmp_path / "out" / line["file_name"]) as image:
            assert line["text"] == ("even", "odd")[np.asarray(image)[0, 0] % 2]


# ---- mixtures ----


def part(name, count, size=4, channels=1, classes=("a", "b"), value=0, read=False):
    images = np.full((count, size, size, channels), value, np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    held = {"read": lambda rows: (images[rows], rows)} if read else {"images": images}
    labels = (np.arange(count) % len(classes)).astype(np.int32) if classes else None
    return Dataset(name, count, size, channels, tuple(classes), labels=labels, **held)


@pytest.mark.parametrize("read", [False, True])
def test_each_part_has_its_share(read):
    parts = [part("real", 30, value=10), part("made", 7, value=20, read=read)]
    mixed = mixture.mixed(parts, [0.75, 0.25])
    assert mixed.num_examples == 40 and mixed.name == "0.75 real + 0.25 made"
    rows = np.random.default_rng(0).permutation(40)
    images, used = mixed.read(rows)
    np.testing.assert_array_equal(used, rows)
    of_made = images[:, 1, 1, 0] == 20
    assert of_made.sum() == 10
    numbers = images[:, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(numbers[~of_made]), np.arange(30))
    np.testing.assert_array_equal(np.bincount(numbers[of_made]), [2, 2, 2, 1, 1, 1, 1])
    np.testing.assert_array_equal(mixed.labels[rows], numbers % 2)


def test_a_training_stream_of_a_mixture(workdir, tmp_path):
    from aigc_jax import config as configs
    from aigc_jax.data import configured

    out = tmp_path / "made"
    assert sample(workdir, "--as-dataset", out, "--n=50") == 0
    config = configs.load("digits_dcgan")
    config.image_size = 16
    config.data.mix = (("digits", 0.8), (f"generated:{out}", 0.2))
    config, stream = configured.training(config)
    assert config.num_classes == 10 and config.channels == 1
    made = {x.tobytes() for x in sources.load(f"generated:{out}", image_size=16).images}
    batches = itertools.islice(stream(0), 30)
    seen = [x for batch in batches for x in np.uint8(np.round((batch["image"] + 1) * 127.5))]
    share = np.mean([x.tobytes() in made for x in seen])
    assert abs(share - 0.2) < 0.04
    held = configured.held_out(config)
    assert held.data.name == "digits/test"


@pytest.mark.parametrize(
    "mix, line",
    [
        ([("digits", 0.5), ("digits", 0.4)], "sum to 0.9: make them sum to 1"),
        ([("digits", 1.5), ("digits", -0.5)], r"holds \('digits', 1.5\): write \(SOURCE, SHARE\)"),
        (["digits"], "write .SOURCE, SHARE."),
    ],
)
def test_shares_that_mean_nothing(mix, line):
    with pytest.raises(UserError, match=line):
        mixture.check(mix)


@pytest.mark.parametrize(
    "other, line",
    [
        (dict(channels=3), "images of 4x4x1 and made of 4x4x3: set config.channels"),
        (dict(classes=()), "2 classes .a, b, .... and made no labels"),
        (dict(classes=("a", "c")), "must have the same names"),
    ],
)
def test_parts_that_differ(other, line):
    with pytest.raises(UserError, match=line):
        mixture.mixed([part("real", 4), part("made", 4, **other)], [0.5, 0.5])
