"""LPIPS against the authors' package, with its linear weights and a random trunk."""

import logging
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_random import allow_torchvision

from aigc_jax.errors import UserError
from aigc_jax.metrics.lpips import from_torch, load, lpips


@pytest.fixture(scope="module", params=["vgg", "alex"])
def theirs(request):
    """(net, the authors' module with a random trunk, torch)."""
    torch = pytest.importorskip("torch")
    allow_torchvision()
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        module = package.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    return request.param, module, torch


@pytest.fixture(scope="module")
def variables(theirs):
    net, module, _ = theirs
    return from_torch(trunk_of(module), heads_of(module), net)


@pytest.fixture(scope="module")
def value_and_gradient(theirs):
    """The distance of one pair of images, and its gradient in the first; compiled once."""
    net, *_ = theirs
    return jax.jit(jax.value_and_grad(lambda x, y, v: lpips(v, x, y, net).sum()))


def trunk_of(module):
    """The random trunk under torchvision's names: `net.slice2.5.weight` is `features.5.weight`."""
    state = module.state_dict()
    names = {name: name.split(".", 2)[2] for name in state if name.startswith("net.")}
    return {f"features.{index}": state[name].numpy() for name, index in names.items()}


def heads_of(module):
    return {n: a.numpy() for n, a in module.state_dict().items() if n.startswith("lin")}


def pairs(count=3, size=64, seed=0):
    """Smooth images in [-1, 1], and copies with more and more noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, size // 8, size // 8, 3))
    x = coarse.repeat(8, 1).repeat(8, 2)
    noise = 0.2 * np.arange(1, count + 1).reshape(-1, 1, 1, 1) * rng.normal(size=x.shape)
    return x.astype(np.float32), np.clip(x + noise, -1, 1).astype(np.float32)


def to_torch(torch, x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def heads_folder():
    package = pytest.importorskip("lpips")
    return Path(package.__file__).parent / "weights" / "v0.1"


def test_distances_are_the_authors(theirs, variables):
    net, module, torch = theirs
    x, y = pairs()
    with torch.no_grad():
        truth = module(to_torch(torch, x), to_torch(torch, y)).flatten().numpy()
    ours = jax.jit(lpips, static_argnums=3)(variables, x, y, net)
    assert ours.shape == (3,) and ours.dtype == jnp.float32
    assert truth.min() > 1e-3
    np.testing.assert_allclose(ours, truth, rtol=1e-5)


def test_gradients_are_the_authors(theirs, variables, value_and_gradient):
    _, module, torch = theirs
    x, y = pairs(1, 32)
    image = to_torch(torch, x).requires_grad_()
    module(image, to_torch(torch, y)).sum().backward()
    truth = image.grad.numpy().transpose(0, 2, 3, 1)
    _, gradient = value_and_gradient(x, y, variables)
    error = np.linalg.norm(gradient - truth) / np.linalg.norm(truth)
    assert error < 1e-4


def test_of_equal_images_it_vanishes_with_its_gradient(variables, value_and_gradient):
    x, _ = pairs(1, 32)
    value, gradient = value_and_gradient(x, x, variables)
    assert value < 1e-11
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradients_are_finite_where_all_activations_are_zero(variables, value_and_gradient):
    dark = jax.tree.map(lambda a: -jnp.abs(a), variables["trunk"])
    x, y = map(np.abs, pairs(1, 32))
    value, gradient = value_and_gradient(x, y, variables | {"trunk": dark})
    assert value == 0
    assert jnp.isfinite(gradient).all()


def test_published_linear_weights_are_known(theirs, variables, tmp_path, caplog):
    """Loaded from files, with a warning for the random trunk alone."""
    net, module, torch = theirs
    path = tmp_path / "trunk.pth"
    torch.save({name: torch.from_numpy(a) for name, a in trunk_of(module).items()}, path)
    with caplog.at_level(logging.WARNING):
        loaded = load(path, heads_folder() / f"{net}.pth", net)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    (record,) = caplog.records
    assert "trunk.pth is not the published" in record.message


def test_other_linear_weights_are_told_of(theirs, tmp_path, caplog):
    net, module, torch = theirs
    paths = tmp_path / "trunk.pth", tmp_path / "heads.pth"
    for path, arrays in zip(paths, (trunk_of(module), heads_of(module)), strict=True):
        torch.save({name: torch.from_numpy(a) for name, a in arrays.items()}, path)
    with caplog.at_level(logging.WARNING):
        load(*paths, net)
    assert "heads.pth is not the published" in caplog.records[1].message


def test_files_that_are_missing(tmp_path):
    present = tmp_path / "present.pth"
    present.touch()
    with pytest.raises(UserError, match=r"none.pth is not there.*vgg16-397923af.pth"):
        load(tmp_path / "none.pth", present)
    with pytest.raises(UserError, match=r"none.pth is not there.*alexnet-owt-7be5be79.pth"):
        load(tmp_path / "none.pth", present, "alex")


def test_weights_of_another_net_are_refused(theirs):
    net, module, _ = theirs
    other = {"vgg": "alex", "alex": "vgg"}[net]
    with pytest.raises(UserError, match=r"LPIPS's linear weights for .*lin1.model.1.weight"):
        from_torch(trunk_of(module), heads_of(module), other)


@pytest.mark.parametrize(
    ("x", "net", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "vgg19", "no net 'vgg19'. Did you mean 'vgg'"),
        (np.zeros((1, 64, 64, 3), np.uint8), "vgg", "not uint8"),
        (np.zeros((1, 64, 64, 1), np.float32), "vgg", r"\(1, 64, 64, 1\)"),
        (np.zeros((1, 8, 64, 3), np.float32), "vgg", "16x16, not 8x64"),
    ],
)
def test_what_is_refused(x, net, message):
    with pytest.raises(UserError, match=message):
        lpips({"trunk": {}, "heads": {}}, x, x, net)
