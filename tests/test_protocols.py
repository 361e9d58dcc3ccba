"""The protocols' facts, and every way of resizing against its origin."""

import inspect
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax.errors import UserError
from aigc_jax.metrics import protocols, resize

SIDES = [(32, 32), (28, 40), (299, 299), (300, 298), (97, 401)]


def images(side, count=2, channels=3):
    rng = np.random.default_rng(side)
    return rng.integers(0, 256, (count, *side, channels), dtype=np.uint8)


def each(function, batch):
    return np.stack([function(image) for image in batch])


@pytest.mark.parametrize("side", SIDES)
def test_tf1_is_tensorflows_to_the_bit(side):
    tf = pytest.importorskip("tensorflow")
    x = images(side)
    expected = tf.raw_ops.ResizeBilinear(images=x, size=[299, 299]).numpy()
    np.testing.assert_array_equal(jax.jit(resize.tf1)(x), expected)
    np.testing.assert_array_equal(each(resize.tf1_host, x), expected)


def test_tf1_is_exact_under_all_of_the_compilers_optimisations():
    code = (
        "import jax, numpy as np\n"
        "from aigc_jax.metrics import resize\n"
        "for side in ((32, 32), (97, 401)):\n"
        "    x = np.random.default_rng(0).integers(0, 256, (2, *side, 3), dtype=np.uint8)\n"
        "    expected = np.stack([resize.tf1_host(image) for image in x])\n"
        "    np.testing.assert_array_equal(jax.jit(resize.tf1)(x), expected)\n"
        "    scaled = jax.jit(lambda x: (resize.tf1(x) - 128) / 128)(x)\n"
        "    np.testing.assert_array_equal(scaled, (expected - 128) / 128)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("side", SIDES)
def test_half_pixel_is_pytorchs(side):
    torch = pytest.importorskip("torch")
    x = images(side)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2).float(), size=(299, 299), mode="bilinear"
    )
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(jax.jit(resize.half_pixel)(x), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(each(resize.half_pixel_host, x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_clean_is_pillows_bicubic(side):
    x = images(side)
    planes = [
        [Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC) for c in image]
        for image in x.transpose(0, 3, 1, 2).astype(np.float32)
    ]
    expected = np.clip(np.array(planes).transpose(0, 2, 3, 1), 0, 255)
    np.testing.assert_array_equal(each(resize.clean_host, x), expected)
    np.testing.assert_allclose(jax.jit(resize.clean)(x), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", sorted(resize.DEVICE))
def test_images_of_the_networks_size_stay_as_they_are(name):
    x = images((299, 299))
    np.testing.assert_array_equal(resize.DEVICE[name](x), x)
    np.testing.assert_array_equal(each(resize.HOST[name], x), x)


@pytest.mark.parametrize("name", sorted(resize.HOST))
def test_grey_images_are_repeated(name):
    x = images((28, 28), count=1, channels=1)[0]
    y = resize.HOST[name](x)
    assert y.shape == (299, 299, 3) and y.dtype == np.float32
    np.testing.assert_array_equal(y, resize.HOST[name](x.repeat(3, -1)))


def test_the_conventions_differ():
    x = images((32, 32), count=1)
    tf1, half, clean = (np.asarray(resize.DEVICE[n](x)) for n in ("tf1", "half_pixel", "clean"))
    assert min(abs(tf1 - half).mean(), abs(half - clean).mean(), abs(tf1 - clean).mean()) > 5


def test_protocols():
    def facts(p):
        return p.resize, p.scaling, p.ddof, p.logits, p.spatial

    unbiased = "logits_unbiased"
    assert {name: facts(protocols.find(name)) for name in protocols.PROTOCOLS} == {
        "tf1": ("tf1", "tf1", 1, unbiased, False),
        "pytorch_fid": ("half_pixel", "unit", 1, unbiased, False),
        "clean": ("clean", "tf1", 1, unbiased, False),
        "adm": ("tf1", "tf1", 1, unbiased, True),
        "stylegan": ("tf1", "tf1", 0, unbiased, False),
    }


def test_inception_score_takes_every_rule():
    inception_score = pytest.importorskip("aigc_jax.metrics.inception_score").inception_score
    for protocol in protocols.PROTOCOLS.values():
        inspect.signature(inception_score).bind(None, **protocol.inception_score_rule())
    assert protocols.find("tf1").inception_score_rule()["shuffle_seed"] == 2020
    assert protocols.find("adm").inception_score_rule()["split_size"] == 5000
    assert protocols.find("stylegan").inception_score_rule()["shuffle_seed"] is None


def test_unknown_protocol():
    with pytest.raises(UserError, match=r"no protocol 'tf2'\. Did you mean 'tf1'\?"):
        protocols.find("tf2")
