"""Inception against torch-fidelity's and pytorch-fid's, with the same random weights."""

import functools
import os
import warnings
from pathlib import Path

import inception_random
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aigc_jax.errors import UserError
from aigc_jax.metrics import inception, protocols, resize

TAPS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
# Random networks amplify rounding; two float32 implementations differ by a fifth of this.
TOLERANCE = {"64": 1e-5, "192": 1e-5, "768": 1e-5} | dict.fromkeys(TAPS[3:], 5e-5)


def photographs(side, count=2):
    """Images (count, *side, 3) uint8: photographs where there are any, else spots of colour."""
    folder = Path(os.environ.get("AIGC_DATA_DIR", "")) / "images" / "bsd" / "Set68"
    if not folder.is_dir():
        colours = np.random.RandomState(0).randint(0, 256, (count, 3, 3, 3)).astype(np.uint8)
        crops = [resize.clean_host(x).astype(np.uint8) for x in colours]
    else:
        crops = [Image.open(path) for path in sorted(folder.iterdir())[: 3 * count]]
        crops = np.stack([np.asarray(x.convert("L").crop((0, 0, 320, 320))) for x in crops])
        crops = crops.reshape(count, 3, 320, 320).transpose(0, 2, 3, 1)  # colours: three images
    return np.stack([np.asarray(Image.fromarray(x).resize(side[::-1])) for x in crops])


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def channels_first(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(jnp.asarray, inception.variables(inception_random.state_dict()))


@pytest.fixture(scope="module")
def torch_state_dict():
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(a) for name, a in inception_random.state_dict().items()}


@pytest.fixture(scope="module")
def torch_fidelity(torch_state_dict, tmp_path_factory):
    """torch-fidelity's network: uint8 (B, H, W, 3) -> {tap: array}."""
    import torch

    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(torch_state_dict, path)
    network = FeatureExtractorInceptionV3("", list(TAPS), feature_extractor_weights_path=str(path))
    return network


@functools.cache
def under(protocol):
    return jax.jit(functools.partial(inception._taps, protocols.find(protocol), "highest"))


@pytest.mark.parametrize("side", [(32, 32), (64, 64), (256, 256), (299, 299), (120, 310)], ids=str)
def test_taps_are_torch_fidelitys(side, variables, torch_fidelity):
    import torch

    x = photographs(side)
    with torch.no_grad():
        expected = dict(zip(TAPS, torch_fidelity(channels_first(x)), strict=True))
    taps = under("tf1")(variables, x)
    for name in TAPS:
        assert taps[name].dtype == jnp.float32
        assert distance(taps[name], expected[name]) < TOLERANCE[name], name


def test_spatial_features_are_of_mixed_6d(variables, torch_fidelity):
    import torch

    x, seen = photographs((64, 64)), {}
    layer = torch_fidelity.Mixed_6d.branch1x1
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(y=output))
    with torch.no_grad():
        torch_fidelity(channels_first(x))
    hook.remove()
    expected = seen["y"].permute(0, 2, 3, 1)[..., :7].reshape(len(x), -1)
    spatial = under("adm")(variables, x)["spatial"]
    assert spatial.shape == (2, 2023)
    assert distance(spatial, expected) < 1e-5


@pytest.mark.parametrize("side", [(32, 32), (256, 256), (120, 310)], ids=str)
def test_taps_are_pytorch_fids(side, variables, torch_state_dict, monkeypatch):
    import torch

    inception_random.allow_torchvision()
    pytorch_fid = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *a, **k: torch_state_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = pytorch_fid.InceptionV3([0, 1, 2, 3]).eval()
    x = photographs(side)
    with torch.no_grad():
        expected = [y.mean((2, 3)) for y in network(channels_first(x).float() / 255)]
    taps = under("pytorch_fid")(variables, x)
    for name, y in zip(TAPS, expected, strict=False):
        assert distance(taps[name], y) < TOLERANCE[name], name


def test_protocols_give_different_features(variables):
    x = photographs((64, 64))
    tf1, pytorch_fid, clean = (
        under(name)(variables, x)["2048"] for name in ("tf1", "pytorch_fid", "clean")
    )
    assert distance(tf1, pytorch_fid) > 0.01 and distance(tf1, clean) > 0.01


@pytest.mark.parametrize("name", ["pytorch_fid", "clean", "adm"])
def test_extractor_reads_images_as_they_are_or_from_its_resize(name, variables):
    protocol, x = protocols.find(name), photographs((64, 64))
    extractor = inception.extractor(inception_random.weights(), protocol)
    resized = np.stack([extractor.resize(image) for image in x])
    outputs, taps = (
        jax.jit(extractor.apply)(extractor.variables, resized),
        under(name)(variables, x),
    )
    names = {"features": "2048", "logits": protocol.logits}
    names |= {"spatial": "spatial"} if name == "adm" else {}
    assert set(outputs) == set(names)
    for output, tap in names.items():
        assert distance(outputs[output], taps[tap]) < 5e-5, output


def test_extractor_says_what_it_is():
    weights = inception_random.weights()
    extractor = inception.extractor(weights, protocols.find("clean"), "high")
    assert extractor.provenance == {
        "extractor": "inception-2015-12-05",
        "weights": "seed0.pth",
        "sha256": "0" * 64,
        "official": False,
        "protocol": "clean",
        "precision": "high",
    }
    assert (extractor.name, extractor.channels, extractor.size) == ("inception", 3, None)
    assert extractor.resize_first and extractor.resize_on_device is resize.clean
    assert not inception.extractor(weights, protocols.find("tf1")).resize_first


@pytest.mark.parametrize("batch", [1, 7])
def test_features_do_not_depend_on_the_batch(batch, variables):
    x = photographs((32, 32), count=8)
    expected, features = (under("tf1")(variables, y)["2048"] for y in (x, x[:batch]))
    assert distance(features, expected[:batch]) < 1e-6


@pytest.fixture(scope="module")
def many(variables):
    """64 small inputs of the network, and its features of them at once."""
    x = np.random.RandomState(1).uniform(-1, 1, (64, 107, 112, 3)).astype(np.float32)
    apply = jax.jit(lambda variables, x: inception.apply(variables, x)["2048"])
    return apply, x, np.asarray(apply(variables, x))


def test_features_do_not_depend_on_large_batches(variables, many):
    apply, x, expected = many
    assert distance(apply(variables, x[:32]), expected[:32]) < 1e-6


def test_features_do_not_depend_on_the_devices(variables, many):
    apply, x, expected = many
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    y = apply(jax.device_put(variables, replicated), jax.device_put(x[:32], sharding))
    assert len(y.sharding.device_set) == 8
    assert distance(y, expected[:32]) < 1e-6


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def products(jaxpr):
    """The precision of every convolution and matrix product, those in inner functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            yield from products(getattr(inner, "jaxpr", inner)) if is_jaxpr(inner) else ()


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
def test_precision_is_pinned_whatever_the_flags_say(precision, variables):
    x = jnp.zeros((1, 80, 80, 3), jnp.uint8)
    for protocol in (protocols.find("tf1"), protocols.find("clean")):
        function = functools.partial(inception._taps, protocol, precision)
        with jax.default_matmul_precision("bfloat16"):
            found = list(products(jax.make_jaxpr(function)(variables, x).jaxpr))
        network = found[2:] if protocol.resize == "clean" else found
        assert len(network) >= 95
        assert set(network) == {(jax.lax.Precision(precision),) * 2}
        assert set(found) - set(network) <= {(jax.lax.Precision.HIGHEST,) * 2}


def test_batch_norms_are_folded_in_float64():
    arrays = inception_random.state_dict()
    folded = inception.variables(arrays)["Mixed_6b.branch7x7_2"]
    get = lambda part: arrays[f"Mixed_6b.branch7x7_2.{part}"].astype(np.float64)  # noqa: E731
    x = np.random.RandomState(0).standard_normal((7, 128))
    y = np.einsum("oit,ti->o", get("conv.weight")[:, :, 0], x)
    y = (y - get("bn.running_mean")) / np.sqrt(get("bn.running_var") + 1e-3)
    y = y * get("bn.weight") + get("bn.bias")
    z = np.einsum("tio,ti->o", folded["kernel"][0].astype(np.float64), x) + folded["bias"]
    np.testing.assert_allclose(z, y, rtol=1e-5, atol=1e-5)


def test_images_too_small_for_the_network(variables):
    with pytest.raises(UserError, match="74x80 vanish in the network"):
        inception.apply(variables, jnp.zeros((1, 74, 80, 3)))
