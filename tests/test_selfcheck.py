"""Published figures made again: CIFAR-10 as its archives hold it, and the verdict."""

import pickle

import numpy as np
import pytest

from aigc_jax import selfcheck
from aigc_jax.errors import UserError
from aigc_jax.metrics import inception, inception_weights
from aigc_jax.metrics.extractors import Extractor


def planes(seed):
    return np.random.RandomState(seed).randint(0, 256, (10_000, 3072), np.uint8)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Both forms of the archives, of noise."""
    root = tmp_path_factory.mktemp("cifar10")
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for kind in ("bin", "py"):
        (root / kind / f"cifar-10-batches-{kind}").mkdir(parents=True)
    for seed, name in enumerate(names):
        labels = np.full((10_000, 1), 7, np.uint8)
        np.hstack([labels, planes(seed)]).tofile(root / "bin/cifar-10-batches-bin" / f"{name}.bin")
        content = {b"data": planes(seed), b"labels": [7] * 10_000, b"batch_label": b"x"}
        with (root / "py/cifar-10-batches-py" / name).open("wb") as file:
            pickle.dump(content, file, protocol=2)
    return root


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_both_archives(cifar10, kind):
    images = selfcheck.read_cifar10(cifar10 / kind, "test")
    np.testing.assert_array_equal(images, planes(5).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    train = selfcheck.read_cifar10(cifar10 / kind / f"cifar-10-batches-{kind}", "train")
    assert train.shape == (50_000, 32, 32, 3)
    np.testing.assert_array_equal(train[30_000, 1, 2], planes(3)[0].reshape(3, 32, 32)[:, 1, 2])


def test_no_archive(tmp_path):
    with pytest.raises(UserError, match="holds no CIFAR-10"):
        selfcheck.read_cifar10(tmp_path, "test")
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes"):
        selfcheck.read_cifar10(tmp_path, "test")


@pytest.fixture
def small_network(monkeypatch):
    """In Inception's place, so that the figures are quickly made (and are not the published)."""

    def apply(variables, images):
        x = images.astype("float32")[:, ::8, ::8].reshape(len(images), -1) / 255
        return {"features": x, "logits": x}

    monkeypatch.setattr(inception, "extractor", lambda *args: Extractor("small", {}, apply))
    found = inception_weights.Weights({}, "x.pth", "6726", official=True)
    monkeypatch.setattr(inception_weights, "load", lambda path: found)


def test_figures_that_differ_are_told(cifar10, small_network, capsys):
    assert not selfcheck.run(None, str(cifar10 / "bin"), quick=True)
    out = capsys.readouterr().out
    assert "x.pth" in out and "a published file" in out
    rows = [line for line in out.splitlines() if "torch-fidelity" in line]
    assert len(rows) == 3 and all("differs by" in row for row in rows)
    assert "train 256 against test 256" in out and "110.2808" in out


def test_figures_that_agree(cifar10, small_network, monkeypatch, capsys):
    figure = selfcheck.Figure("is", "train 100", None, 0.0, 1e-6, "here")
    monkeypatch.setattr(selfcheck, "_FIGURES", (figure,))
    selfcheck.run(None, str(cifar10 / "py"))
    got = float(capsys.readouterr().out.splitlines()[-1].split("|")[4])
    monkeypatch.setattr(selfcheck, "_FIGURES", (figure._replace(expected=got),))
    assert selfcheck.run(None, str(cifar10 / "py"))
    assert "agrees" in capsys.readouterr().out


def test_weights_alone(small_network, capsys):
    assert selfcheck.run(None, None)
    assert "--cifar10 DIR" in capsys.readouterr().out
