"""The published image translators in PyTorch, by their layer tables and names, and their files.

CycleGAN's and CUT's residual generator, pix2pix's U-Net, the PatchGAN; `aigc_jax` is not imported.
"""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

NORMS = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "affine": functools.partial(nn.InstanceNorm2d, affine=True),
    "tracked": functools.partial(nn.InstanceNorm2d, track_running_stats=True),
}


class Down(nn.Module):
    """[1 2 1] x [1 2 1] / 16 at every second pixel, mirrored by one (Zhang 2019)."""

    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16).repeat(channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(F.pad(x, [1] * 4, "reflect"), self.filt, stride=2, groups=x.shape[1])


class Up(nn.Module):
    """[1 3 3 1] x [1 3 3 1] / 16 spread over twice the size, borders repeated, then cropped."""

    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16).repeat(channels, 1, 1, 1))

    def forward(self, x):
        x = F.pad(x, [1] * 4, "replicate")
        y = F.conv_transpose2d(x, self.filt, stride=2, padding=2, groups=x.shape[1])
        return y[:, :, 1:-1, 1:-1]


class Block(nn.Module):
    """x + what two mirrored 3x3 convolutions make of it."""

    def __init__(self, width, norm, bias, dropout):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width), nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv_block(x)


class ResNet(nn.Module):
    """The residual generator; `blur`: CUT's."""

    def __init__(
        self, channels=3, out=3, width=64, blocks=9, norm="instance", dropout=False, blur=False
    ):
        super().__init__()
        bias, norm = norm != "batch", NORMS[norm]
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7, bias=bias), norm(width)]
        layers += [nn.ReLU()]
        for k in (1, 2):
            stride, c = 1 if blur else 2, 2 * k * width
            layers += [nn.Conv2d(k * width, c, 3, stride, 1, bias=bias), norm(c), nn.ReLU()]
            layers += [Down(c)] if blur else []
        layers += [Block(4 * width, norm, bias, dropout) for _ in range(blocks)]
        for k in (4, 2):
            before, after = k * width, k * width // 2
            if blur:
                layers += [Up(before), nn.Conv2d(before, after, 3, 1, 1, bias=bias)]
            else:
                layers += [nn.ConvTranspose2d(before, after, 3, 2, 1, 1, bias=bias)]
            layers += [norm(after), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class Level(nn.Module):
    """A level of the U-Net around the next: (x, what the inner levels make of x)."""

    def __init__(self, before, width, inner, norm, bias, dropout, out=None):
        super().__init__()
        outer = out is not None
        down = [nn.Conv2d(before, width, 4, 2, 1, bias=bias)]
        if not outer:
            down = [nn.LeakyReLU(0.2), *down, *([norm(width)] if inner else [])]
        features = out or before
        up = nn.ConvTranspose2d(2 * width if inner else width, features, 4, 2, 1, bias=bias)
        if outer:  # with a bias, whatever the norm
            up = [nn.ConvTranspose2d(2 * width, features, 4, 2, 1), nn.Tanh()]
        else:
            up = [up, norm(features), *([nn.Dropout(0.5)] if dropout else [])]
        self.outer = outer
        self.model = nn.Sequential(*down, *([inner] if inner else []), nn.ReLU(), *up)

    def forward(self, x):
        y = self.model(x)
        return y if self.outer else torch.cat([x, y], 1)


class UNet(nn.Module):
    """The U-Net."""

    def __init__(self, channels=3, out=3, width=64, levels=8, norm="batch", dropout=True):
        super().__init__()
        bias, norm, level = norm != "batch", NORMS[norm], None
        widths = [width * min(2**i, 8) for i in range(levels)]
        for i in reversed(range(1, levels)):
            drop = dropout and 4 <= i < levels - 1
            level = Level(widths[i - 1], widths[i], level, norm, bias, drop)
        self.model = Level(channels, width, level, norm, bias, False, out)

    def forward(self, x):
        return self.model(x)


class PatchGAN(nn.Module):
    """The discriminator; `blur`: CUT's."""

    def __init__(self, channels=3, width=64, layers=3, norm="instance", blur=False):
        super().__init__()
        bias, norm = norm != "batch", NORMS[norm]
        stride = 1 if blur else 2
        model = [nn.Conv2d(channels, width, 4, stride, 1), nn.LeakyReLU(0.2)]
        model += [Down(width)] if blur else []
        for i in range(1, layers + 1):
            before, after = (width * min(2**k, 8) for k in (i - 1, i))
            last = i == layers
            model += [nn.Conv2d(before, after, 4, 1 if last else stride, 1, bias=bias)]
            model += [norm(after), nn.LeakyReLU(0.2)]
            model += [Down(after)] if blur and not last else []
        self.model = nn.Sequential(*model, nn.Conv2d(after, 1, 4, 1, 1))

    def forward(self, x):
        return self.model(x)


def spread(net, seed=0):
    """`net` with weights of a healthy size, biases away from 0, and statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 4 and not name.endswith("filt"):
                value.copy_(noise / value[0].numel() ** 0.5)
            elif name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(1 + 0.3 * noise.tanh())
            elif value.ndim == 1:
                value.copy_(0.3 * noise)
    return net


def arrays(net):
    """The arrays of a file of `net`."""
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def nchw(x):
    return torch.tensor(np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)
