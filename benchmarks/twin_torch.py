"""The mission's own GAN in PyTorch, with its strongest simple training step.

G is ConvTranspose2d 100-256-128-64-3 at 32x32, D is Conv2d 3-64-128-256-1 (Radford, Metz and
Chintala, 2016): kernels of 4, stride 1 where the map is 1x1 and 2 elsewhere, no biases, logits out.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F


def widths(image_size: int, width: int = 64) -> list[int]:
    """D's channels: `width` at half the size, doubled down to 4x4."""
    return [width * 2**i for i in range(image_size.bit_length() - 3)]


def make_generator(inputs: int, image_size: int, channels: int) -> nn.Sequential:
    """(B, inputs, 1, 1) -> (B, channels, image_size, image_size) in [-1, 1]."""
    layers, stride, pad = [], 1, 0
    for outputs in reversed(widths(image_size)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, pad, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs, stride, pad = outputs, 2, 1
    layers += [nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).apply(initialise)


def make_discriminator(inputs: int, image_size: int) -> nn.Sequential:
    """(B, inputs, image_size, image_size) -> (B, 1, 1, 1) logits."""
    layers = []
    for i, outputs in enumerate(widths(image_size)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs)] if i else []
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, 1, 0, bias=False)).apply(initialise)


def initialise(module: nn.Module) -> None:
    """DCGAN's: kernels N(0, 0.02), batch norm scales N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class TorchGAN:
    """Both networks and their optimizers; `step(images, labels)` is one D and one G update.

    `num_classes > 0` conditions both: a one-hot label joins the latent, and D's input as planes.
    On a GPU the networks run in bfloat16 under autocast; `compile` passes them to `torch.compile`.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        num_classes: int = 0,
        latent_dim: int = 100,
        device: str = "cpu",
        compile: bool = False,
    ) -> None:
        self.num_classes, self.latent_dim, self.device = num_classes, latent_dim, device
        layout = {"device": device, "memory_format": torch.channels_last}
        self.g = make_generator(latent_dim + num_classes, image_size, channels).to(**layout)
        self.d = make_discriminator(channels + num_classes, image_size).to(**layout)
        # One fused kernel a parameter list: the fastest of the three on CPU (loop, foreach, fused).
        adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
        self.g_optimizer = torch.optim.Adam(self.g.parameters(), **adam)
        self.d_optimizer = torch.optim.Adam(self.d.parameters(), **adam)
        self._g, self._d = (
            (torch.compile(self.g), torch.compile(self.d)) if compile else (self.g, self.d)
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor | None = None):
        """Images (B, C, H, W) in [-1, 1], channels-last; labels (B,) int64. Returns both losses."""
        with self._autocast():
            fake = self._g(self._latent(len(images), labels))
            d_loss = bce(self._discriminate(images, labels), 1.0)
            d_loss = d_loss + bce(self._discriminate(fake.detach(), labels), 0.0)
        update(self.d_optimizer, d_loss)
        self.d.requires_grad_(False)  # no weight gradients of D in G's step
        with self._autocast():
            g_loss = bce(self._discriminate(fake, labels), 1.0)
        update(self.g_optimizer, g_loss)
        self.d.requires_grad_(True)
        return d_loss.detach(), g_loss.detach()

    @torch.no_grad()
    def sample(self, count: int, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(count, C, H, W) float32 in [-1, 1], by the running statistics."""
        images = self.g.eval()(self._latent(count, labels))
        self.g.train()
        return images.float()

    def _latent(self, count: int, labels: torch.Tensor | None) -> torch.Tensor:
        z = torch.randn(count, self.latent_dim, device=self.device)
        if self.num_classes:
            z = torch.cat([z, F.one_hot(labels, self.num_classes).to(z)], 1)
        return z[:, :, None, None]

    def _discriminate(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        if self.num_classes:
            planes = F.one_hot(labels, self.num_classes).to(images)[:, :, None, None]
            planes = planes.expand(-1, -1, *images.shape[2:])
            images = torch.cat([images, planes], 1).contiguous(memory_format=torch.channels_last)
        return self._d(images).flatten()

    def _autocast(self):
        if self.device == "cpu":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


def bce(logits: torch.Tensor, target: float) -> torch.Tensor:
    """The non-saturating GAN loss of one half: mean binary cross-entropy to one `target`."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One optimizer step down `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
