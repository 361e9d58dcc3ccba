"""The residual GANs and BigGAN in PyTorch, from the papers; `aigc_jax` is not imported.

Miyato et al. 2018 (tables 3 and 4, algorithm 1), Miyato & Koyama 2018, Zhang et al. 2019 (section
3), Brock et al. 2019 (appendix B). Images are NCHW, and channels-last in memory if they and the
module are. `copy_generator` and `copy_discriminator` fill a module with this library's variables,
and nothing may be left over on either side. Labels are one-hot, (B, classes) float32.
"""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


# ---- spectral normalisation ----


class Spectral(nn.Module):
    """A layer whose `used()` is its weight over the largest singular value (algorithm 1)."""

    def begin(self):
        self.register_buffer("u", F.normalize(torch.randn(len(self.weight)), dim=0))
        return self

    def used(self):
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u @ matrix, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return self.weight / torch.dot(u, matrix @ v)


class SpectralConv(nn.Conv2d, Spectral):
    def forward(self, x):
        return self._conv_forward(x, self.used(), self.bias)


class SpectralLinear(nn.Linear, Spectral):
    def forward(self, x):
        return F.linear(x, self.used(), self.bias)


def conv(spectral, before, after, size=3, bias=True):
    args = dict(padding=size // 2, bias=bias)
    if spectral:
        return SpectralConv(before, after, size, **args).begin()
    return nn.Conv2d(before, after, size, **args)


def linear(spectral, before, after, bias=True):
    if spectral:
        return SpectralLinear(before, after, bias).begin()
    return nn.Linear(before, after, bias)


# ---- parts ----


class Norm(nn.BatchNorm2d):
    def forward(self, x, vector):
        return super().forward(x)


class ConditionalNorm(nn.Module):
    def __init__(self, spectral, width, told):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.gain = linear(spectral, told, width, bias=False)
        self.bias = linear(spectral, told, width, bias=False)

    def forward(self, x, vector):
        gain, bias = (f(vector)[:, :, None, None] for f in (self.gain, self.bias))
        return torch.addcmul(bias, self.norm(x), 1 + gain)


def norm(spectral, width, told):
    return ConditionalNorm(spectral, width, told) if told else Norm(width)


class Attention(nn.Module):
    def __init__(self, spectral, width):
        super().__init__()
        narrow, half = max(1, width // 8), max(1, width // 2)
        self.query = conv(spectral, width, narrow, 1, bias=False)
        self.key = conv(spectral, width, narrow, 1, bias=False)
        self.value = conv(spectral, width, half, 1, bias=False)
        self.out = conv(spectral, half, width, 1, bias=False)
        self.sigma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        q = self.query(x).flatten(2)
        k, v = (F.max_pool2d(f(x), 2).flatten(2) for f in (self.key, self.value))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        seen = v @ weights.transpose(1, 2)
        return x + self.sigma * self.out(seen.unflatten(2, x.shape[2:]))


class UpBlock(nn.Module):
    def __init__(self, spectral, before, after, told):
        super().__init__()
        self.norm0, self.norm1 = norm(spectral, before, told), norm(spectral, after, told)
        self.conv0, self.conv1 = conv(spectral, before, after), conv(spectral, after, after)
        self.skip = conv(spectral, before, after, 1)

    def forward(self, x, vector):
        y = self.conv0(F.interpolate(F.relu(self.norm0(x, vector)), scale_factor=2.0))
        y = self.conv1(F.relu(self.norm1(y, vector)))
        return y + self.skip(F.interpolate(x, scale_factor=2.0))


class DownBlock(nn.Module):
    def __init__(self, spectral, before, after, halve, first):
        super().__init__()
        self.halve, self.first = halve, first
        self.conv0, self.conv1 = conv(spectral, before, after), conv(spectral, after, after)
        same = before == after and not halve
        self.skip = nn.Identity() if same else conv(spectral, before, after, 1)

    def forward(self, x):
        y = x if self.first else F.relu(x)
        y = self.conv1(F.relu(self.conv0(y)))
        if not self.halve:
            return self.skip(x) + y
        if self.first:
            return self.skip(F.avg_pool2d(x, 2)) + F.avg_pool2d(y, 2)
        return F.avg_pool2d(self.skip(x), 2) + F.avg_pool2d(y, 2)


# ---- networks ----


class Generator(nn.Module):
    """`widths`: channels from 4x4 on; `condition`: "batch_norm", "concat", both or neither."""

    def __init__(
        self,
        widths=(256,) * 4,
        channels=3,
        latent_dim=128,
        num_classes=0,
        condition="batch_norm",
        attention=0,
        spectral=False,
    ):
        super().__init__()
        self.concat = bool(num_classes) and "concat" in condition
        self.modulate = bool(num_classes) and "batch_norm" in condition
        told = num_classes if self.modulate else 0
        start = latent_dim + num_classes * self.concat
        self.build(spectral, start, told, widths, channels, attention)

    def build(self, spectral, start, told, widths, channels, attention):
        self.first = linear(spectral, start, 16 * widths[0])
        pairs = itertools.pairwise(widths)
        self.blocks = nn.ModuleList(UpBlock(spectral, *pair, told) for pair in pairs)
        sides = [8 << i for i in range(len(self.blocks))]
        self.where = sides.index(attention) if attention in sides else None
        if self.where is not None:
            self.attention = Attention(spectral, widths[self.where + 1])
        self.norm, self.image = Norm(widths[-1]), conv(spectral, widths[-1], channels)

    def forward(self, z, one_hot=None):
        if self.concat:
            z = torch.cat([z, one_hot], 1)
        return self.made(z, [one_hot if self.modulate else None] * len(self.blocks))

    def made(self, z, vectors):
        x = self.first(z).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        for i, (block, vector) in enumerate(zip(self.blocks, vectors, strict=True)):
            x = block(x, vector)
            if i == self.where:
                x = self.attention(x)
        return torch.tanh(self.image(F.relu(self.norm(x, None))))


class BigGenerator(Generator):
    """BigGAN's: a chunk of the latent for the first layer and for each block, a shared embedding.

    Without classes the blocks see their chunks alone.
    """

    def __init__(
        self,
        widths=(384,) * 4,
        channels=3,
        chunk=20,
        embedding=128,
        num_classes=0,
        condition="batch_norm",
        attention=16,
        spectral=True,
    ):
        nn.Module.__init__(self)
        self.concat = bool(num_classes) and "concat" in condition
        self.modulate = bool(num_classes) and "batch_norm" in condition
        start = chunk + num_classes * self.concat
        told = chunk + embedding * self.modulate
        self.build(spectral, start, told, widths, channels, attention)
        if self.modulate:
            self.shared = nn.Linear(num_classes, embedding, bias=False)

    def forward(self, z, one_hot=None):
        first, *vectors = z.chunk(len(self.blocks) + 1, 1)
        if self.modulate:
            shared = self.shared(one_hot)
            vectors = [torch.cat([shared, vector], 1) for vector in vectors]
        if self.concat:
            first = torch.cat([first, one_hot], 1)
        return self.made(first, vectors)


class Discriminator(nn.Module):
    """`widths`: of the blocks, `halvings` of which halve the size of `image_size` at first.

    `condition`: "projection", "concat", "auxiliary", several of them or none. With `auxiliary`,
    `classes` holds the class logits of the last call.
    """

    def __init__(
        self,
        widths=(128,) * 4,
        halvings=2,
        image_size=32,
        channels=3,
        num_classes=0,
        condition="projection",
        attention=0,
        spectral=True,
        pool="sum",
    ):
        super().__init__()
        told = condition if num_classes else ""
        self.pool, self.planes = pool, "concat" in told
        chain = [channels + num_classes * self.planes, *widths]
        pairs = zip(chain, widths, strict=False)
        self.blocks = nn.ModuleList(
            DownBlock(spectral, *pair, i < halvings, i == 0) for i, pair in enumerate(pairs)
        )
        sides = [image_size >> (i + 1) for i in range(halvings)]
        self.where = sides.index(attention) if attention in sides else None
        if self.where is not None:
            self.attention = Attention(spectral, widths[self.where])
        self.logit = linear(spectral, widths[-1], 1)
        self.projection = self.classhead = self.classes = None
        if "projection" in told:
            self.projection = linear(spectral, num_classes, widths[-1], bias=False)
        if "auxiliary" in told:
            self.classhead = linear(spectral, widths[-1], num_classes, bias=False)

    def forward(self, x, one_hot=None):
        if self.planes:
            planes = one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], 1)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.where:
                x = self.attention(x)
        pooled = F.relu(x).sum((2, 3)) if self.pool == "sum" else F.relu(x).mean((2, 3))
        logits = self.logit(pooled)[:, 0]
        if self.classhead is not None:
            self.classes = self.classhead(pooled)
        if self.projection is None:
            return logits
        return logits + (self.projection(one_hot) * pooled).sum(1)


# ---- this library's variables in PyTorch's names and shapes ----

_LAYERS = {"UpsampleConv_0": "conv0", "ConvDownsample_0": "conv1", "Dense_0": "skip"}
_LAYERS |= {f"{kind}BatchNorm_{i}": f"norm{i}" for kind in ("", "Conditional") for i in (0, 1)}
_UP, _DOWN = {"Conv_0": "conv1"}, {"Conv_0": "conv0", "Conv_1": "conv1"}
_TOP = {"Dense_0": "first", "BatchNorm_0": "norm", "Conv_0": "image", "MapAttention_0": "attention"}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _name(module, path):
    """("block1", "Conv_0", "kernel") -> "blocks.1.conv1.weight"."""
    *layers, leaf = path
    if layers and layers[0].startswith("block"):
        block, layer, *rest = layers
        own = _UP if isinstance(module, Generator) else _DOWN
        layers = ["blocks", block.removeprefix("block"), (_LAYERS | own)[layer]]
        layers += ["norm" if part == "BatchNorm_0" else part for part in rest]
    else:
        layers = [_TOP.get(part, part) for part in layers]
    return ".".join([*layers, _LEAVES.get(leaf, leaf)])


def _leaves(tree, path=()):
    for key, value in tree.items():
        if hasattr(value, "items"):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), np.array(value)


def named(module, *trees):
    """Variables of this library, or gradients, by the module's names and in its shapes."""
    shapes = {name: x.shape for name, x in module.state_dict().items()}
    found = {}
    for tree in trees:
        for path, value in _leaves(tree):
            name = _name(module, path)
            if path[-1] == "kernel":  # (kh, kw, in, out), or (in, out)
                value = np.transpose(value, (3, 2, 0, 1) if value.ndim == 4 else (1, 0))
            # A 1x1 convolution is a linear layer here.
            found[name] = torch.tensor(value.copy()).reshape(shapes[name])
    return found


def _copy(variables, module):
    found = named(module, *variables.values())
    counts = {k: x for k, x in module.state_dict().items() if k.endswith("num_batches_tracked")}
    module.load_state_dict(found | counts, strict=True)
    return module


def copy_generator(variables, module):
    """The module with the variables of `models.resnet_gan.Generator`, or of BigGAN's."""
    return _copy(variables, module)


def copy_discriminator(variables, module):
    """The module with the variables of `models.resnet_gan.Discriminator`, or of BigGAN's."""
    return _copy(variables, module)
