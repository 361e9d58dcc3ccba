"""The published restorers in PyTorch, by their layer tables and names; `aigc_jax` isn't imported.

DnCNN as two repositories save it, and LaMa's generator of fast Fourier convolutions.
"""

import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class Sequential(nn.Module):
    """Layers whose names in a state dict begin with `root`; the noise that they find."""

    def __init__(self, root, layers):
        super().__init__()
        self.root = root
        setattr(self, root, nn.Sequential(*layers))

    def forward(self, x):
        return getattr(self, self.root)(x)


def dncnn(channels=1, depth=17, width=64, eps=1e-5):
    """DnCNN-PyTorch's: batch norm in the middle, no biases of convolutions."""
    conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1, bias=False)  # noqa: E731
    layers = [conv(channels, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [conv(width, width), nn.BatchNorm2d(width, eps), nn.ReLU()]
    return Sequential("dncnn", [*layers, conv(width, channels)])


def merged_dncnn(channels=1, depth=17, width=64, seen=None):
    """KAIR's, its batch norm merged into the convolutions; `seen`: channels that go in."""
    layers = [nn.Conv2d(seen or channels, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return Sequential("model", [*layers, nn.Conv2d(width, channels, 3, padding=1)])


class Spectral(nn.Module):
    """SpectralTransform without the local Fourier unit."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.reduce = nn.Conv2d(width, half, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(half)
        self.spectral = nn.Conv2d(2 * half, 2 * half, 1, bias=False)
        self.spectral_norm = nn.BatchNorm2d(2 * half)
        self.expand = nn.Conv2d(half, width, 1, bias=False)

    def forward(self, x):
        x = F.relu(self.reduce_norm(self.reduce(x)))
        z = torch.fft.rfft2(x, norm="ortho")
        y = torch.stack([z.real, z.imag], 2).flatten(1, 2)  # c0 re, c0 im, c1 re, ...
        y = F.relu(self.spectral_norm(self.spectral(y))).unflatten(1, (-1, 2))
        z = torch.complex(y[:, :, 0], y[:, :, 1])
        return self.expand(x + torch.fft.irfft2(z, s=x.shape[-2:], norm="ortho"))


class Fourier(nn.Module):
    """FFC, batch norm of either branch, ReLU."""

    def __init__(self, width, share):
        super().__init__()
        wide = int(width * share)
        local = width - wide
        conv = lambda a, b: nn.Conv2d(a, b, 3, 1, 1, bias=False, padding_mode="reflect")  # noqa: E731
        self.l2l, self.l2g, self.g2l = conv(local, local), conv(local, wide), conv(wide, local)
        self.g2g = Spectral(wide)
        self.norm_l, self.norm_g = nn.BatchNorm2d(local), nn.BatchNorm2d(wide)

    def forward(self, pair):
        x, far = pair
        near = self.norm_l(self.l2l(x) + self.g2l(far))
        return F.relu(near), F.relu(self.norm_g(self.l2g(x) + self.g2g(far)))


class Lama(nn.Module):
    """FFCResNetGenerator; images and mask (1: known) go in, images in [-1, 1] come out."""

    def __init__(self, channels=3, width=64, levels=3, blocks=9, share=0.75):
        super().__init__()
        self.local = (width << levels) - int((width << levels) * share)
        self.first = nn.Conv2d(channels + 1, width, 7, bias=False)
        self.downs = nn.ModuleList(
            nn.Conv2d(width << i, width << (i + 1), 3, 2, 1, bias=False, padding_mode="reflect")
            for i in range(levels)
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(width << (i + 1), width << i, 3, 2, 1, 1) for i in range(levels)
        )
        self.first_norm = nn.BatchNorm2d(width)
        self.down_norms = nn.ModuleList(nn.BatchNorm2d(width << (i + 1)) for i in range(levels))
        self.up_norms = nn.ModuleList(nn.BatchNorm2d(width << i) for i in range(levels))
        self.blocks = nn.ModuleList(Fourier(width << levels, share) for _ in range(2 * blocks))
        self.last = nn.Conv2d(width, channels, 7)

    def forward(self, x, mask):
        x = F.pad(torch.cat([x, mask], 1), [3] * 4, "reflect")
        x = F.relu(self.first_norm(self.first(x)))
        for down, norm in zip(self.downs, self.down_norms, strict=True):
            x = F.relu(norm(down(x)))
        pair = x[:, : self.local], x[:, self.local :]
        for a, b in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            inside = b(a(pair))
            pair = pair[0] + inside[0], pair[1] + inside[1]
        x = torch.cat(pair, 1)
        for up, norm in reversed(list(zip(self.ups, self.up_norms, strict=True))):
            x = F.relu(norm(up(x)))
        return 2 * torch.sigmoid(self.last(F.pad(x, [3] * 4, "reflect"))) - 1
