"""VGG-16, AlexNet and the features of precision and recall: PyTorch with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_random import allow_torchvision

from aigc_jax.errors import UserError
from aigc_jax.metrics import vgg_extractor
from aigc_jax.models import alexnet, vgg

SMALL = vgg.VGG16(widths=(4, 5, 6, 7, 8), hidden=9, linear=True)
SHAPES = {
    "features.0": (64, 3, 3, 3),
    "features.2": (64, 64, 3, 3),
    "features.5": (128, 64, 3, 3),
    "features.7": (128, 128, 3, 3),
    "features.10": (256, 128, 3, 3),
    "features.12": (256, 256, 3, 3),
    "features.14": (256, 256, 3, 3),
    "features.17": (512, 256, 3, 3),
    "features.19": (512, 512, 3, 3),
    "features.21": (512, 512, 3, 3),
    "features.24": (512, 512, 3, 3),
    "features.26": (512, 512, 3, 3),
    "features.28": (512, 512, 3, 3),
    "classifier.0": (4096, 25088),
    "classifier.3": (4096, 4096),
}


@pytest.fixture
def torch():
    """PyTorch with torchvision."""
    torch = pytest.importorskip("torch")
    allow_torchvision()
    torch.manual_seed(0)
    return torch


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def arrays_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def activations(torch, layers, x):
    """What every ReLU of a torch.nn.Sequential gives, channels last."""
    taps, x = [], torch.from_numpy(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                taps.append(x.clone())
    return [tap.permute(0, 2, 3, 1).numpy() for tap in taps]


def assert_near(ours, truth, tolerance=2e-6):
    """In the L2 norm, relative; both alive."""
    assert ours.shape == truth.shape
    assert np.linalg.norm(truth) > 0
    assert np.linalg.norm(ours - truth) <= tolerance * np.linalg.norm(truth)


def small_vgg(torch):
    """torchvision's layers with the widths of `SMALL`, and both linear layers."""
    from torchvision.models.vgg import make_layers

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            stages = [[4] * 2, [5] * 2, [6] * 3, [7] * 3, [8] * 3]
            self.features = make_layers([w for stage in stages for w in [*stage, "M"]])
            self.classifier = torch.nn.Sequential(
                torch.nn.Linear(8 * 7 * 7, 9),
                torch.nn.ReLU(),
                torch.nn.Dropout(),
                torch.nn.Linear(9, 9),
                torch.nn.ReLU(),
            )

    return Net().eval()


def test_every_activation_of_vgg(torch):
    net, x = small_vgg(torch), images(2, 224, 224, 3)
    ours = SMALL.apply(vgg.from_torch(arrays_of(net), SMALL), x)
    names = [
        f"relu{i}_{j}" for i, depth in enumerate([2, 2, 3, 3, 3], 1) for j in range(1, depth + 1)
    ]
    assert list(ours) == [*names, "fc1", "fc2"]
    for name, truth in zip(names, activations(torch, net.features[:-1], x), strict=True):
        assert_near(ours[name], truth)


def test_linear_layers_of_vgg(torch):
    """Torch flattens channels first, we last: the first layer's rows are permuted."""
    net, x = small_vgg(torch), images(2, 224, 224, 3)
    ours = SMALL.apply(vgg.from_torch(arrays_of(net), SMALL), x)
    with torch.no_grad():
        hidden = net.features(torch.from_numpy(x.transpose(0, 3, 1, 2))).flatten(1)
        assert_near(ours["fc1"], net.classifier[:2](hidden).numpy())
        assert_near(ours["fc2"], net.classifier(hidden).numpy())


@pytest.mark.parametrize("size", [(33, 47), (16, 16)])
def test_vgg_reads_any_size(torch, size):
    net, x = small_vgg(torch), images(1, *size, 3)
    convolutions = vgg.VGG16(widths=SMALL.widths)
    ours = convolutions.apply(vgg.from_torch(arrays_of(net), convolutions), x)
    assert_near(ours["relu5_3"], activations(torch, net.features[:-1], x)[-1])


@pytest.mark.parametrize("size", [(64, 75), (31, 31)])
def test_every_activation_of_alexnet(torch, size):
    from torchvision.models import alexnet as theirs

    net, x = theirs().eval(), images(2, *size, 3)
    ours = alexnet.AlexNet().apply(alexnet.from_torch(arrays_of(net)), x)
    truth = activations(torch, net.features[:-1], x)
    for name, tap in zip(["relu1", "relu2", "relu3", "relu4", "relu5"], truth, strict=True):
        assert_near(ours[name], tap)


def test_shapes_of_vgg():
    """Those of torchvision's file."""
    net = vgg.VGG16(linear=True)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    kernels = [leaves["kernel"].shape[::-1] for leaves in params.values()]
    assert sorted(sorted(shape) for shape in kernels) == sorted(map(sorted, SHAPES.values()))
    arrays = zeros_like_torchvision()
    del arrays["classifier.0.weight"], arrays["classifier.3.weight"]
    vgg.from_torch(arrays)


def zeros_like_torchvision():
    weights = {f"{name}.weight": np.broadcast_to(np.float32(0), s) for name, s in SHAPES.items()}
    return weights | {f"{name}.bias": np.zeros(s[0], np.float32) for name, s in SHAPES.items()}


def test_wrong_arrays_are_named_together():
    arrays = zeros_like_torchvision()
    del arrays["features.7.bias"]
    arrays["features.0.weight"] = np.zeros((64, 1, 3, 3))
    with pytest.raises(
        UserError,
        match=r"VGG16: features.0.weight is \(64, 1, 3, 3\), .*features.7.bias is missing",
    ):
        vgg.from_torch(arrays)
    with pytest.raises(UserError, match=r"AlexNet: .*features.0.weight is .*more"):
        alexnet.from_torch(arrays)


def test_sizes_that_are_refused():
    with pytest.raises(UserError, match="16x16, not 15x32"):
        jax.eval_shape(vgg.VGG16().init, jax.random.key(0), jnp.zeros((1, 15, 32, 3)))
    with pytest.raises(UserError, match="224x224, not 64x64"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(UserError, match="31x31, not 30x64"):
        jax.eval_shape(alexnet.AlexNet().init, jax.random.key(0), jnp.zeros((1, 30, 64, 3)))


@pytest.mark.parametrize("net", [vgg.VGG16(widths=(4, 4, 4, 4, 4)), alexnet.AlexNet()])
def test_every_product_is_in_full_precision(net):
    x = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    program = str(jax.make_jaxpr(net.apply)(variables, x))
    convolutions = program.count("conv_general_dilated[")
    assert convolutions in (5, 13)
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == convolutions


def resized(torch, images):
    """uint8 (B, H, W, 3) -> (B, 3, 224, 224), by torch-fidelity."""
    compat = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    resize = compat.interpolate_bilinear_2d_like_tensorflow1x
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    return resize(images, size=(224, 224), align_corners=False)


@pytest.mark.parametrize("size", [(32, 33), (224, 224), (250, 500)])
def test_features_of_uint8_images(torch, size):
    from torchvision.transforms.functional import normalize

    net = small_vgg(torch)
    x = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    with torch.no_grad():
        standard = normalize(resized(torch, x) / 255, mean, deviation)
        truth = net.classifier(net.features(standard).flatten(1)).numpy()
    ours = vgg_extractor.features(SMALL, vgg.from_torch(arrays_of(net), SMALL), x)
    assert_near(ours["features"], truth, 1e-5)


def test_resize_of_single_images(torch):
    """On the host, for images of mixed sizes."""
    x = np.random.default_rng(0).integers(0, 256, (1, 250, 100, 3), np.uint8)
    truth = resized(torch, x)[0].permute(1, 2, 0).numpy()
    extractor = vgg_extractor.extractor(zeros_like_torchvision())
    np.testing.assert_allclose(extractor.resize(x[0]), truth, atol=1e-4)
    grey = extractor.resize(x[0, ..., :1])
    np.testing.assert_array_equal(grey, truth[..., :1].repeat(3, -1))


@pytest.mark.slow
def test_features_are_torch_fidelitys(torch, tmp_path):
    """All 138 million weights: a file of half a gigabyte."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_vgg16")
    from torchvision.models import vgg16

    path, weights = tmp_path / "vgg16.pth", vgg16().state_dict()
    torch.save(weights, path)
    net = theirs.FeatureExtractorVGG16("vgg16", ["fc2_relu"], str(path))
    extractor = vgg_extractor.load(path)
    assert extractor.provenance["sha256"].isalnum() and not extractor.provenance["official"]
    for size in (32, 224, 300):
        x = np.random.default_rng(size).integers(0, 256, (2, size, size + 1, 3), np.uint8)
        truth = net(torch.from_numpy(x.transpose(0, 3, 1, 2)))[0].numpy()
        features = jax.jit(extractor.apply)(extractor.variables, x)["features"]
        assert_near(features, truth, 1e-5)
        single = np.stack([extractor.resize(image) for image in x])
        assert_near(extractor.apply(extractor.variables, single)["features"], truth, 1e-5)


def test_a_missing_file_says_where_it_is(tmp_path):
    with pytest.raises(UserError, match=r"none.pth is not there.*vgg16-397923af.pth"):
        vgg_extractor.load(tmp_path / "none.pth")
