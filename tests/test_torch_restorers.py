"""Published denoisers: files that PyTorch wrote, told apart, and outputs equal to PyTorch's."""

import re

import jax
import numpy as np
import pytest
import restorer_twins
import torch_twins as twins
from restorer_twins import dncnn, merged_dncnn
from torch_twins import nchw, nhwc, spread, torch

from aigc_jax import torch_weights
from aigc_jax.errors import UserError
from aigc_jax.models.torch_restorers import from_torch

NETS = {
    "DnCNN-PyTorch": lambda: dncnn(1, 6, 8),
    "DnCNN-PyTorch, colour": lambda: dncnn(3, 4, 8),
    "KAIR": lambda: merged_dncnn(1, 6, 8),
    "KAIR, colour": lambda: merged_dncnn(3, 9, 4),
}


def saved(net, path, prefix="", wrap=lambda state: state):
    torch.save(wrap({prefix + key: value for key, value in net.state_dict().items()}), path)
    return torch_weights.load(path)


def denoised(net, x):
    """As these repositories do it: noise is found in images in [0, 1], and taken away."""
    light = (nchw(x) + 1) / 2
    with torch.no_grad():
        return 2 * nhwc(light - net.eval()(light)) - 1


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [("", dict), ("module.", dict), ("", lambda state: {"params": state})],
    ids=["plain", "parallel", "wrapped"],
)
def test_outputs_equal_torchs(name, prefix, wrap, tmp_path):
    """To the border: black around the image is 0 in [0, 1]."""
    net = spread(NETS[name]())
    module, variables = from_torch(saved(net, tmp_path / "net.pth", prefix, wrap))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 13, 10, module.channels)).astype(np.float32)
    y, expected = jax.jit(module.apply)(variables, x), denoised(net, x)
    assert np.abs(expected - x).max() > 0.1
    np.testing.assert_allclose(y, expected, 1e-4, 1e-4)


@pytest.mark.parametrize(("net", "depth"), [(dncnn, 17), (merged_dncnn, 20)])
def test_published_depths_are_known(net, depth):
    module, variables = from_torch(twins.arrays(net(1, depth, 4)))
    assert module.depth == depth and module.width == 4
    like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), dict(variables), like)


def arrays(net, **changes):
    found = twins.arrays(net) | changes
    return {key: a for key, a in found.items() if a is not None}


DNCNN = dncnn(1, 4, 4)
MISTAKES = {
    "other names": (
        {"conv.weight": np.ones((4, 1, 3, 3))},
        "no restorer known here .* conv.weight",
    ),
    "IRCNN": (arrays(merged_dncnn(1, 7, 4)), "IRCNN"),
    "a noise level goes in": (
        arrays(merged_dncnn(1, 5, 4, seen=2)),
        re.escape("model.8.weight (1, 4, 3, 3) instead of (2, 4, 3, 3)"),
    ),
    "no statistics": (arrays(DNCNN, **{"dncnn.3.running_var": None}), "no dncnn.3.running_var"),
    "biases beside norms": (
        arrays(DNCNN, **{"dncnn.2.bias": np.ones(4)}),
        "a DnCNN of 4 convolutions with batch norm, but for dncnn.2.bias",
    ),
    "5x5": (
        arrays(DNCNN, **{"dncnn.5.weight": np.ones((4, 4, 5, 5))}),
        re.escape("dncnn.5.weight (4, 4, 5, 5) instead of (4, 4, 3, 3)"),
    ),
    "empty": (arrays(DNCNN, **{"dncnn.0.weight": np.ones((0, 1, 3, 3))}), "is empty"),
    "a translator": (twins.arrays(twins.PatchGAN(width=2)), "no network known here"),
    "LaMa": (twins.arrays(restorer_twins.Lama(width=2, blocks=1)), "no restorer known here"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_other_networks_are_told(name):
    weights, line = MISTAKES[name]
    with pytest.raises(UserError, match=line) as caught:
        from_torch(weights)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
