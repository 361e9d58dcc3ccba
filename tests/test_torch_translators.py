"""Published weights: files that PyTorch wrote, told apart, and outputs equal to PyTorch's."""

import functools
import re

import jax
import numpy as np
import pytest
import torch_twins as twins
from torch_twins import PatchGAN, ResNet, UNet, nchw, nhwc, spread, torch

from aigc_jax import torch_weights
from aigc_jax.errors import UserError
from aigc_jax.models import patchgan, pix2pix_unet, resnet_translator
from aigc_jax.models.torch_translators import channels, from_torch, multiple

NETS = {
    "resnet 6": lambda: ResNet(width=4, blocks=6),
    "resnet 9, dropout": lambda: ResNet(width=2, blocks=9, dropout=True),
    "resnet 1, grey to colour": lambda: ResNet(1, 3, width=4, blocks=1),
    "resnet, statistics of old": lambda: ResNet(width=4, blocks=2, norm="tracked"),
    "cut": lambda: ResNet(width=4, blocks=3, blur=True),
    "cut, dropout": lambda: ResNet(3, 1, width=4, blocks=2, blur=True, dropout=True),
    "u-net 5": lambda: UNet(width=4, levels=5),
    "u-net 6, colour to grey": lambda: UNet(3, 1, width=2, levels=6),
    "u-net 3, instance": lambda: UNet(width=4, levels=3, norm="instance"),
    "u-net 5, statistics of old": lambda: UNet(width=4, levels=5, norm="tracked"),
    "patchgan": lambda: PatchGAN(width=4),
    "patchgan, pairs": lambda: PatchGAN(6, width=4, layers=2, norm="batch"),
    "patchgan, cut": lambda: PatchGAN(width=4, blur=True),
    "patchgan 4": lambda: PatchGAN(1, width=2, layers=4),
}
nets = pytest.mark.parametrize("name", NETS)
FORMATS = {"zip": True, "legacy": False}


def saved(net, path, new=True, prefix=""):
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    return torch_weights.load(path)


def arrays_of(name):
    return twins.arrays(spread(NETS[name]()))


def pictures(channels, step=32):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64 + step, channels))
    return x.astype(np.float32)


def apply(module, variables, x):
    return jax.jit(functools.partial(module.apply, train=False))(variables, x)


def in_eval(net, x):
    """What PyTorch's repositories compute: instance norm by each image, batch norm by what ran."""
    for module in net.eval().modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with torch.no_grad():
        return nhwc(net(nchw(x)))


def to_bytes(x):
    """As PyTorch's repositories write images."""
    return ((x + 1) / 2 * 255).astype(np.uint8)


@nets
def test_outputs_equal_torchs(name, tmp_path):
    net = spread(NETS[name]())
    new = list(NETS).index(name) % 2 == 0
    module, variables = from_torch(saved(net, tmp_path / "net.pth", new))
    x = pictures(next(net.parameters()).shape[1], multiple(module))
    y, expected = apply(module, variables, x), in_eval(net, x)
    if name.startswith("patchgan"):
        np.testing.assert_allclose(y, expected[..., 0], 1e-4, 1e-4)
    else:
        assert np.abs(expected).max() > 0.5 and y.dtype == np.float32
        levels = to_bytes(np.asarray(y)).astype(int) - to_bytes(expected)
        assert np.abs(levels).max() <= 1 and (levels == 0).mean() > 0.99


@pytest.mark.parametrize("new", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.module."])
def test_both_formats_of_file_and_dataparallel(new, prefix, tmp_path):
    net = spread(NETS["resnet 6"]())
    module, variables = from_torch(saved(net, tmp_path / "net.pth", new, prefix))
    expected, wanted = from_torch(twins.arrays(net))
    assert module == expected
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)


def test_networks_and_their_multiples():
    found = {name: from_torch(arrays_of(name))[0] for name in NETS}
    assert found["resnet 9, dropout"] == resnet_translator.Generator(3, 2, 9)
    assert found["cut"] == resnet_translator.Generator(3, 4, 3, "blur")
    assert found["u-net 6, colour to grey"] == pix2pix_unet.Generator(1, 2, 6, "batch")
    assert found["u-net 3, instance"] == pix2pix_unet.Generator(3, 4, 3, "instance")
    assert found["patchgan, pairs"] == patchgan.Discriminator(4, 2, "batch")
    assert found["patchgan, cut"] == patchgan.Discriminator(4, 3, "instance", antialias=True)
    names = ("resnet 6", "cut", "u-net 5", "u-net 6, colour to grey", "patchgan")
    assert [multiple(found[name]) for name in names] == [4, 4, 32, 64, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet 1, grey to colour", (1, 3)),
        ("cut, dropout", (3, 1)),
        ("u-net 6, colour to grey", (3, 1)),
        ("patchgan, pairs", (6, 1)),
    ],
)
def test_channels(name, expected):
    assert channels(*from_torch(arrays_of(name))) == expected


@pytest.mark.parametrize("name", ["resnet 6", "cut", "u-net 5", "patchgan, pairs"])
def test_variables_are_those_of_the_module(name):
    module, variables = from_torch(arrays_of(name))
    x = pictures(next(NETS[name]().parameters()).shape[1])
    init = functools.partial(module.init, train=False)
    like = jax.eval_shape(init, jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
        lambda a: (a.shape, a.dtype), like
    )


def test_channels_are_the_architectures():
    """Whatever stands first in the file."""
    expected = {"resnet 1, grey to colour": (1, 3), "cut, dropout": (3, 1), "u-net 5": (3, 3),
                "u-net 6, colour to grey": (3, 1)}  # fmt: skip
    for name, both in expected.items():
        backwards = dict(reversed(arrays_of(name).items()))
        assert channels(*from_torch(backwards)) == both


@pytest.mark.parametrize("name", ["resnet 6", "u-net 5", "patchgan"])
def test_an_empty_array_is_named(name):
    arrays = arrays_of(name)
    key = next(iter(arrays))
    arrays[key] = arrays[key][:0]
    assert f"{key} is empty, (0, " in told(arrays)


def told(arrays):
    with pytest.raises(UserError) as error:
        from_torch(arrays)
    line = str(error.value)
    assert "\n" not in line and len(line) < 400
    return line


def test_one_wrong_shape_is_named():
    arrays = arrays_of("resnet 6")
    arrays["model.10.conv_block.1.weight"] = np.zeros((16, 16, 1, 1), np.float32)
    assert told(arrays) == (
        "These are the weights of no network known here: the nearest is a ResNet generator of 6 "
        "blocks with instance norm, but for model.10.conv_block.1.weight (16, 16, 1, 1) instead "
        "of (16, 16, 3, 3)."
    )


@pytest.mark.parametrize(
    ("net", "line"),
    [
        (
            lambda: ResNet(width=4, blocks=2, norm="batch"),
            r"ResNet generator of 2 blocks with instance norm, but for batch norm, model.2.weight "
            r"\(4,\), .* and \d+ more",
        ),
        (
            lambda: ResNet(width=4, blocks=2, norm="affine"),
            r"2 blocks with instance norm, but for weights of its norm \(affine\), model.2.weight",
        ),
        (
            lambda: UNet(width=4, levels=4, norm="affine"),
            r"U-Net of 4 levels with instance norm, but for weights of its norm \(affine\)",
        ),
        (
            lambda: PatchGAN(width=4, norm="affine"),
            r"PatchGAN of 3 layers with instance norm, but for weights of its norm \(affine\)",
        ),
        (lambda: torch.nn.Linear(3, 4), "no translator known here .* they begin with weight, bias"),
    ],
    ids=["batch", "affine", "affine u-net", "affine patchgan", "linear"],
)
def test_networks_that_we_do_not_build(net, line):
    assert re.search(line, told(twins.arrays(net())))


def changed(name, change):
    arrays = arrays_of(name)
    change(arrays)
    return told(arrays)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("resnet 6", lambda a: a.pop("model.23.bias"), "but for no model.23.bias."),
        ("resnet 6", lambda a: a.pop("model.1.bias"), "but for no model.1.bias."),
        ("resnet 6", lambda a: a.update(z=np.zeros(3)), "but for z (3,)."),
        ("cut", lambda a: a["model.7.filt"].__imul__(2), "for other values in model.7.filt."),
        ("cut", lambda a: a.pop("model.15.filt"), "but for no model.15.filt."),
        ("u-net 5", lambda a: a.pop("model.model.1.model.2.running_var"), "running_var."),
        (
            "patchgan",
            lambda a: a.pop("model.11.bias"),
            "of 3 layers with instance norm, but for no",
        ),
    ],
)
def test_what_differs_is_named(name, change, words):
    assert words in changed(name, change)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (lambda: ResNet(), 11_378_179),
        (lambda: ResNet(blocks=6), 7_837_699),
        (lambda: UNet(), 54_413_955),
        (lambda: UNet(levels=7), 41_828_995),
        (lambda: PatchGAN(), 2_764_737),
    ],
    ids=["resnet 9", "resnet 6", "u-net 256", "u-net 128", "patchgan"],
)
def test_the_twins_have_the_published_sizes(net, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in net().parameters()) == count
