"""The library's convolutional VAE in PyTorch, with its strongest simple training step.

The networks are those of `aigc_jax.models.vae_resnet`: 4x4 convolutions of stride 2 between
residual blocks, a linear layer to the posterior and one back, transposed convolutions up.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3; the last starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = he(nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class VAE(nn.Module):
    """Images (B, C, S, S) -> the likelihood's logits, the posterior's mean and log scale."""

    def __init__(self, image_size: int, channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        stages = sum(image_size >> i > 8 for i in range(image_size.bit_length()))
        self.side, widths = image_size >> stages, [width << i for i in range(stages)]
        encoder, inputs = [], channels
        for i, outputs in enumerate(widths):
            encoder += [nn.ReLU()] if i else []
            encoder += [he(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=i > 0)), ResBlock(outputs)]
            inputs = outputs
        self.encoder = nn.Sequential(*encoder, nn.ReLU())
        self.posterior = nn.Linear(inputs * self.side**2, 2 * latent_dim)
        self.to_map = nn.Linear(latent_dim, inputs * self.side**2)
        decoder = []
        for outputs in reversed([width, *widths[:-1]]):
            up = he(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), inputs * 4)
            decoder += [ResBlock(inputs), nn.ReLU(), up]
            inputs = outputs
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), nn.Conv2d(inputs, channels, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_scale = self.posterior(self.encoder(x).flatten(1)).chunk(2, 1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        y = self.to_map(z).view(len(z), -1, self.side, self.side)
        y = y.contiguous(memory_format=torch.channels_last)
        return self.decoder(y), mean, log_scale


def he(layer: nn.Module, fan_in: int | None = None) -> nn.Module:
    """The layer with He's normal kernel and no bias at first."""
    fan_in = fan_in or layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, (2 / fan_in) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class TorchVAE:
    """A VAE, its optimizer and its average; `step(images)` is one update on minus the ELBO."""

    def __init__(
        self,
        image_size: int = 28,
        channels: int = 1,
        latent_dim: int = 64,
        width: int = 32,
        half_life: float = 200_000.0,
    ) -> None:
        self.net = VAE(image_size, channels, latent_dim, width)
        self.net.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        # One fused kernel: the fastest of the three on CPU (loop, foreach, fused).
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        self.half_life, self.seen = half_life, 0

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, S, S) in [-1, 1], channels-last. Returns the loss, nats an image."""
        white = torch.bernoulli((images + 1) / 2)
        logits, mean, log_scale = self.net(2 * white - 1)
        nll = F.binary_cross_entropy_with_logits(logits, white, reduction="sum")
        kl = 0.5 * (mean**2 + torch.expm1(2 * log_scale)) - log_scale
        loss = (nll + kl.sum()) / len(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._average(len(images))
        return loss.detach()

    @torch.no_grad()
    def _average(self, batch: int) -> None:
        half_life = min(self.half_life, max(0.05 * self.seen, 1e-8))
        new = 1 - 0.5 ** (batch / half_life)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), new)
        self.seen += batch
