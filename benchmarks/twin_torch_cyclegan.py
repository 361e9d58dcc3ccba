"""CycleGAN in PyTorch, with its strongest simple training step.

The networks are those of `aigc_jax.models.resnet_translator` and `.patchgan`. Images that go
through one network share a pass; discriminators are frozen while the generators learn.
"""

import itertools
import random

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, borders mirrored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)),
            nn.ReLU(True),
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


def generator(channels: int, width: int, blocks: int) -> nn.Sequential:
    """The residual generator."""

    def normed(layer: nn.Module) -> list[nn.Module]:
        return [layer, nn.InstanceNorm2d(layer.out_channels), nn.ReLU(True)]

    return nn.Sequential(
        nn.ReflectionPad2d(3),
        *normed(nn.Conv2d(channels, width, 7)),
        *normed(nn.Conv2d(width, 2 * width, 3, 2, 1)),
        *normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1)),
        *(Block(4 * width) for _ in range(blocks)),
        *normed(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1)),
        *normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1)),
        nn.ReflectionPad2d(3),
        nn.Conv2d(width, channels, 7),
        nn.Tanh(),
    )


def discriminator(channels: int, width: int) -> nn.Sequential:
    """The PatchGAN of 3 layers."""
    layers, before = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True)], width
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(before, 2 * before, 4, stride, 1), nn.InstanceNorm2d(2 * before)]
        layers += [nn.LeakyReLU(0.2, True)]
        before *= 2
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))


class Pool:
    """The last generated images, some of which a discriminator sees again."""

    def __init__(self, size: int) -> None:
        self.size, self.images = size, []

    def query(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._one(image[None]) for image in images])

    def _one(self, image: torch.Tensor) -> torch.Tensor:
        if len(self.images) < self.size:
            self.images.append(image)
        elif random.random() < 0.5:
            place = random.randrange(self.size)
            image, self.images[place] = self.images[place], image
        return image


class TorchCycleGAN:
    """Both generators, both discriminators; `step(a, b)` is one update of each."""

    def __init__(self, channels: int = 3, width: int = 64, blocks: int = 9) -> None:
        self.g = nn.ModuleList(generator(channels, width, blocks) for _ in range(2))
        self.d = nn.ModuleList(discriminator(channels, width) for _ in range(2))
        for net in itertools.chain(self.g, self.d):
            net.to(memory_format=torch.channels_last)
            net.apply(initialise)
        self.pools = Pool(50), Pool(50)
        # One fused kernel: the fastest of the three on CPU (loop, foreach, fused).
        adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
        self.g_optimizer = torch.optim.Adam(self.g.parameters(), **adam)
        self.d_optimizer = torch.optim.Adam(self.d.parameters(), **adam)

    def step(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Images (B, C, S, S) in [-1, 1] of each domain, channels-last."""
        self.d.requires_grad_(False)
        self.g_optimizer.zero_grad(set_to_none=True)
        loss, fakes = self._generators_loss(a, b)
        loss.backward()
        self.g_optimizer.step()

        self.d.requires_grad_(True)
        self.d_optimizer.zero_grad(set_to_none=True)
        pairs = zip(self.d, (b, a), self.pools, fakes, strict=True)
        sum(_judge(net, real, pool.query(fake)) for net, real, pool, fake in pairs).backward()
        self.d_optimizer.step()

    def _generators_loss(self, a: torch.Tensor, b: torch.Tensor) -> tuple:
        (fake_b, same_b), (fake_a, same_a) = self._both(0, a, b), self._both(1, b, a)
        loss = sum(
            F.mse_loss(logits, torch.ones_like(logits))
            for logits in (self.d[0](fake_b), self.d[1](fake_a))
        )
        loss = loss + 10 * F.l1_loss(self.g[1](fake_b), a) + 10 * F.l1_loss(self.g[0](fake_a), b)
        loss = loss + 5 * F.l1_loss(same_b, b) + 5 * F.l1_loss(same_a, a)
        return loss, (fake_b.detach(), fake_a.detach())

    def _both(self, i: int, first: torch.Tensor, second: torch.Tensor) -> tuple:
        return self.g[i](torch.cat([first, second])).chunk(2)


def _judge(net: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    of_real, of_fake = net(torch.cat([real, fake])).chunk(2)
    return (F.mse_loss(of_real, torch.ones_like(of_real)) + (of_fake**2).mean()) / 2


def initialise(layer: nn.Module) -> None:
    """Kernels normal with standard deviation 0.02, no biases."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        nn.init.zeros_(layer.bias)
