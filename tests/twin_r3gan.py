"""R3GAN in PyTorch, by Huang et al. 2024, section 3, configuration E; `aigc_jax` is not imported.

Images are NCHW. `copy_generator` and `copy_discriminator` fill a twin with this library's
variables, and nothing may be left over on either side.
"""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def filtered(function, x, total):
    """[1 3 3 1] x [1 3 3 1] of that total, at stride 2, from every channel to itself."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = total / 64 * torch.outer(row, row).repeat(x.shape[1], 1, 1, 1)
    return function(x, kernel, stride=2, padding=1, groups=x.shape[1])


class Block(nn.Module):
    def __init__(self, width, group_width):
        super().__init__()
        inner = 2 * width
        self.expand = nn.Conv2d(width, inner, 1)  # their biases stand before the activations
        self.spread = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group_width)
        self.reduce = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x):
        y = F.leaky_relu(self.expand(x), 0.2)
        return x + self.reduce(F.leaky_relu(self.spread(y), 0.2))


def stage(width, group_width, blocks):
    return nn.Sequential(*(Block(width, group_width) for _ in range(blocks)))


def change(before, after):
    return nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)


class Generator(nn.Module):
    """`widths`: of the stages from 4x4 up."""

    def __init__(self, widths, group_width, blocks, channels, latent_dim, num_classes=0):
        super().__init__()
        self.num_classes = num_classes
        told = latent_dim if num_classes else 0
        self.label = nn.Linear(num_classes, told, bias=False) if num_classes else None
        self.latent = nn.Linear(latent_dim + told, widths[0], bias=False)
        self.basis = nn.Parameter(torch.empty(widths[0], 4, 4))
        self.stages = nn.ModuleList(stage(w, group_width, blocks) for w in widths)
        pairs = itertools.pairwise(widths)
        self.changes = nn.ModuleList(change(*pair) for pair in pairs)
        self.image = nn.Conv2d(widths[-1], channels, 1, bias=False)

    def forward(self, z, one_hot=None):
        if self.label is not None:
            z = torch.cat([z, self.label(one_hot)], 1)
        x = self.stages[0](self.basis * self.latent(z)[:, :, None, None])
        for narrow, blocks in zip(self.changes, self.stages[1:], strict=True):
            x = blocks(filtered(F.conv_transpose2d, narrow(x), 4))
        return self.image(x)


class Discriminator(nn.Module):
    """`condition`: "projection", or "concat" of one-hot planes; `widths` from 4x4 up."""

    def __init__(self, widths, group_width, blocks, channels, num_classes=0, condition=""):
        super().__init__()
        self.planes, projects = condition == "concat", condition == "projection"
        planes = num_classes if self.planes else 0
        self.image = nn.Conv2d(channels + planes, widths[-1], 1, bias=False)
        down = widths[::-1]
        self.stages = nn.ModuleList(stage(w, group_width, blocks) for w in down)
        pairs = itertools.pairwise(down)
        self.changes = nn.ModuleList(change(*pair) for pair in pairs)
        self.basis = nn.Conv2d(widths[0], widths[0], 4, groups=widths[0], bias=False)
        self.logit = nn.Linear(widths[0], widths[0] if projects else 1, bias=False)
        self.label = nn.Linear(num_classes, widths[0], bias=False) if projects else None

    def forward(self, x, one_hot=None):
        if self.planes:
            planes = one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], 1)
        x = self.image(x)
        for blocks, widen in zip(self.stages, self.changes, strict=False):
            x = widen(filtered(F.conv2d, blocks(x), 1))
        x = self.basis(self.stages[-1](x)).flatten(1)
        y = self.logit(x)
        return y[:, 0] if self.label is None else (y * self.label(one_hot)).sum(1)


# ---- this library's parameters in PyTorch's names and shapes ----

_LAYERS = {"Conv_0": "expand", "Conv_1": "spread", "Conv_2": "reduce"}


def named(twin, params):
    """Parameters, or their gradients, of this library by the twin's names and in its shapes."""
    last = len(twin.stages) - 1
    upward = isinstance(twin, Generator)
    numbers = {4 << i: i if upward else last - i for i in range(last + 1)}
    found = {}
    for name, value in params.items():
        kind, *rest = name.split("_")
        if kind == "block":
            start = f"stages.{numbers[int(rest[0])]}.{rest[1]}"
            for layer, arrays in value.items():
                found |= _layer(f"{start}.{_LAYERS[layer]}", arrays)
        elif kind in ("halve", "double"):
            found |= _layer(f"changes.{numbers[int(rest[0])] - upward}", value)
        elif upward and kind == "basis":
            found["basis"] = torch.tensor(np.transpose(value[0], (2, 0, 1)))
        else:
            found |= _layer(name, value)
    return found


def _layer(name, arrays):
    kernel = np.array(arrays["kernel"])
    axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    found = {f"{name}.weight": torch.tensor(np.transpose(kernel, axes).copy())}
    if "bias" in arrays:
        found[f"{name}.bias"] = torch.tensor(np.array(arrays["bias"]))
    return found


def copy_generator(twin, variables):
    """The twin with the parameters of `models.r3gan.Generator`."""
    twin.load_state_dict(named(twin, variables["params"]), strict=True)
    return twin


def copy_discriminator(twin, variables):
    """The twin with the parameters of `models.r3gan.Discriminator`, but not of `auxiliary`."""
    params = {name: x for name, x in variables["params"].items() if name != "classhead"}
    twin.load_state_dict(named(twin, params), strict=True)
    return twin
