"""StyleGAN2 in PyTorch, as its papers write it down: weights of each example's own, grouped.

Names are those of this library's parameters, so that `copy_weights` finds them.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def resolutions(image_size):
    return [2**i for i in range(2, int(math.log2(image_size)) + 1)]


def leaky(x, gain=2**0.5):
    return functional.leaky_relu(x, 0.2) * gain


def unit_moment(x):
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def upfirdn(x, up=1, down=1, pad=(0, 0), gain=1.0):
    """Zeros between the pixels, a border, the 4x4 filter, every down-th pixel."""
    b, c, h, w = x.shape
    if up > 1:
        spread = x.new_zeros(b, c, h, up, w, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(b, c, h * up, w * up)
    x = functional.pad(x, [*pad, *pad])
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    kernel = (torch.outer(row, row) * gain).expand(c, 1, 4, 4)
    return functional.conv2d(x, kernel, stride=down, groups=c)


def named(module, **layers):
    for name, layer in layers.items():
        module.add_module(name, layer)


class Dense(nn.Module):
    def __init__(self, inputs, features, multiplier=1.0, bias=0.0):
        super().__init__()
        self.multiplier = multiplier
        self.kernel = nn.Parameter(torch.randn(features, inputs) / multiplier)
        self.bias = nn.Parameter(torch.full([features], bias))

    def forward(self, x):
        gain = self.multiplier / math.sqrt(x.shape[1])
        return functional.linear(x, self.kernel * gain, self.bias * self.multiplier)


class Conv(nn.Module):
    def __init__(self, inputs, features, size=3, bias=True, down=False):
        super().__init__()
        self.down = down
        self.kernel = nn.Parameter(torch.randn(features, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    def forward(self, x):
        size = self.kernel.shape[-1]
        kernel = self.kernel / math.sqrt(self.kernel[0].numel())
        if self.down and size == 1:
            x = upfirdn(x, down=2, pad=(1, 1))
        elif self.down:
            return functional.conv2d(upfirdn(x, pad=(2, 2)), kernel, self.bias, stride=2)
        return functional.conv2d(x, kernel, self.bias, padding=size // 2)


class ModulatedConv(nn.Module):
    """`scaled`: maps are scaled before and after one convolution, PyTorch's faster form."""

    scaled = False

    def __init__(self, inputs, features, w_dim, size=3, demodulate=True, up=False):
        super().__init__()
        self.demodulate, self.up = demodulate, up
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.kernel = nn.Parameter(torch.randn(features, inputs, size, size))

    def forward(self, x, w):
        b, c, h, width = x.shape
        o, _, size, _ = self.kernel.shape
        style = self.affine(w).reshape(b, 1, c, 1, 1)
        if not self.demodulate:
            style = style / math.sqrt(c * size * size)
        if self.scaled:
            return self._by_scaling(x, style.reshape(b, c, 1, 1))
        kernels = self.kernel[None] * style
        if self.demodulate:
            norm = kernels.square().sum([2, 3, 4], keepdim=True)
            kernels = kernels * (norm + 1e-8).rsqrt()
        x = x.reshape(1, b * c, h, width)
        if not self.up:
            kernels = kernels.reshape(b * o, c, size, size)
            x = functional.conv2d(x, kernels, padding=size // 2, groups=b)
            return x.reshape(b, o, h, width)
        kernels = kernels.transpose(1, 2).reshape(b * c, o, size, size)
        x = functional.conv_transpose2d(x, kernels, stride=2, groups=b)
        return upfirdn(x.reshape(b, o, *x.shape[2:]), pad=(1, 1), gain=4)

    def _by_scaling(self, x, style):
        x, kernel = x * style, self.kernel
        if self.up:
            x = functional.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
            x = upfirdn(x, pad=(1, 1), gain=4)
        else:
            x = functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        if not self.demodulate:
            return x
        norm = style[:, :, 0, 0].square() @ kernel.square().sum([2, 3]).T
        return x * (norm + 1e-8).rsqrt()[:, :, None, None]


class Layer(nn.Module):
    def __init__(self, inputs, features, w_dim, up=False):
        super().__init__()
        self.conv = ModulatedConv(inputs, features, w_dim, up=up)
        self.strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x, w, noise):
        x = self.conv(x, w)
        if noise is None:
            noise = torch.randn_like(x[:, :1])
        return leaky(x + self.strength * noise + self.bias.reshape(1, -1, 1, 1))


class Synthesis(nn.Module):
    def __init__(self, resolution, inputs, features, channels, w_dim):
        super().__init__()
        self.first = resolution == 4
        if self.first:
            self.constant = nn.Parameter(torch.randn(1, features, 4, 4))
        else:
            self.layer_0 = Layer(inputs, features, w_dim, up=True)
        self.layer_1 = Layer(features, features, w_dim)
        self.rgb = ModulatedConv(features, channels, w_dim, 1, demodulate=False)
        self.rgb_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, image, ws, noise):
        ws, noise = list(ws), list(noise)
        if self.first:
            x = self.constant.expand(len(ws[0]), -1, -1, -1)
        else:
            x = self.layer_0(x, ws.pop(0), noise.pop(0))
        x = self.layer_1(x, ws.pop(0), noise.pop(0))
        said = self.rgb(x, ws.pop(0)) + self.rgb_bias.reshape(1, -1, 1, 1)
        if image is not None:
            said = said + upfirdn(image, up=2, pad=(2, 1), gain=4)
        return x, said


class Mapping(nn.Module):
    def __init__(self, latent_dim, features, layers, num_classes):
        super().__init__()
        self.num_classes, self.layers = num_classes, layers
        width = latent_dim
        if num_classes:
            self.embed = Dense(num_classes, features)
            width += features
        for i in range(layers):
            named(self, **{f"layer_{i}": Dense(width if i == 0 else features, features, 0.01)})

    def forward(self, z, label):
        parts = [] if z is None else [unit_moment(z)]
        if self.num_classes:
            one_hot = functional.one_hot(label, self.num_classes).float()
            parts.append(unit_moment(self.embed(one_hot)))
        x = torch.cat(parts, 1)
        for i in range(self.layers):
            x = leaky(self.get_submodule(f"layer_{i}")(x))
        return x


class Generator(nn.Module):
    """z (B, latent_dim), label (B,) int64 -> (B, channels, S, S)."""

    def __init__(
        self,
        image_size=32,
        channels=3,
        latent_dim=512,
        w_dim=512,
        mapping_layers=2,
        width=512,
        channel_base=32768,
        num_classes=0,
    ):
        super().__init__()
        self.mapping_network = Mapping(latent_dim, w_dim, mapping_layers, num_classes)
        self.register_buffer("w_mean", torch.zeros(w_dim))
        self.resolutions = resolutions(image_size)
        features = [min(channel_base // r, width) for r in self.resolutions]
        for r, i, o in zip(self.resolutions, [0, *features], features, strict=False):
            named(self, **{f"block_{r}": Synthesis(r, i, o, channels, w_dim)})

    def forward(self, z, label=None, noise=None):
        """`noise`: a map (B or 1, 1, r, r) a layer, from 4x4 on; None: drawn."""
        w = self.mapping_network(z, label)
        if self.training:
            self.w_mean.copy_(w.detach().mean(0).lerp(self.w_mean, 0.995))
        return self.synthesis([w] * (2 * len(self.resolutions)), noise)

    def synthesis(self, ws, noise=None):
        """`ws`: a (B, w_dim) for each convolution, and one for the last toRGB."""
        noise = [None] * (2 * len(self.resolutions) - 1) if noise is None else list(noise)
        x = image = None
        at = 0
        for r in self.resolutions:
            layers = 1 if r == 4 else 2
            block = self.get_submodule(f"block_{r}")
            x, image = block(x, image, ws[at : at + layers + 1], noise[at : at + layers])
            at += layers
        return image


class Analysis(nn.Module):
    def __init__(self, inputs, features, residual):
        super().__init__()
        self.conv_0 = Conv(inputs, inputs)
        self.conv_1 = Conv(inputs, features, down=True)
        self.skip = Conv(inputs, features, 1, bias=False, down=True) if residual else None

    def forward(self, x):
        y = leaky(self.conv_1(leaky(self.conv_0(x))))
        return y if self.skip is None else (y + self.skip(x)) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Images (B, channels, S, S), label (B,) int64 -> logits (B,)."""

    def __init__(
        self,
        image_size=32,
        channels=3,
        width=512,
        channel_base=32768,
        architecture="orig",
        mapping_layers=8,
        num_classes=0,
        mbstd_group=32,
    ):
        super().__init__()
        self.group = mbstd_group
        at = {r: min(channel_base // r, width) for r in resolutions(image_size)}
        self.resolutions = sorted(at)[:0:-1]
        self.rgb = Conv(channels, at[image_size], 1)
        for r in self.resolutions:
            block = Analysis(at[r], at[r // 2], architecture == "resnet")
            named(self, **{f"block_{r}": block})
        self.conv = Conv(at[4] + 1, at[4])
        self.dense = Dense(16 * at[4], at[4])
        self.logit = Dense(at[4], at[4] if num_classes else 1)
        self.mapping = Mapping(0, at[4], mapping_layers, num_classes) if num_classes else None

    def forward(self, x, label=None):
        x = leaky(self.rgb(x))
        for r in self.resolutions:
            x = self.get_submodule(f"block_{r}")(x)
        x = leaky(self.conv(self.with_deviation(x)))
        x = leaky(self.dense(x.permute(0, 2, 3, 1).flatten(1)))  # in this library's order
        x = self.logit(x)
        if self.mapping is None:
            return x[:, 0]
        return (x * self.mapping(None, label)).sum(1) / math.sqrt(x.shape[1])

    def with_deviation(self, x):
        b, c, h, w = x.shape
        size = max(n for n in range(1, min(self.group, b) + 1) if b % n == 0)
        members = x.reshape(size, -1, c, h, w)
        deviation = (members.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3])
        plane = deviation.repeat(size).reshape(b, 1, 1, 1).expand(b, 1, h, w)
        return torch.cat([x, plane], 1)


def copy_weights(variables, network):
    """Our parameters into the twin's, and the mean of w; as many as it has, and no other."""
    params = dict(network.named_parameters())
    for name, value in flat(variables["params"]):
        value = torch.from_numpy(np.array(value))
        if name.endswith("kernel"):
            value = value.T if value.ndim == 2 else value.permute(3, 2, 0, 1)
        elif name.endswith("constant"):
            value = value.permute(0, 3, 1, 2)
        assert params[name].shape == value.shape, name
        params.pop(name).data.copy_(value)
    assert not params, params.keys()
    if "batch_stats" in variables:
        network.w_mean.copy_(torch.from_numpy(np.array(variables["batch_stats"]["w_mean"])))
    return network


copy_generator = copy_discriminator = copy_weights


def flat(tree, prefix=""):
    for name, value in tree.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
