"""Steps of SNGAN and StyleGAN2, and the second-order terms: ours and PyTorch's, in turn.

    python benchmarks/gan_steps.py [CASE ...] [--width 128]

`sngan`: one update of each network, 32x32, batch 64, conditional, published widths. `stylegan2`:
the same at batch 16, no penalty in the step. `gp`, `r1`, `path`: the gradient with respect to the
parameters of WGAN-GP's penalty on its critic, of R1 on StyleGAN2's discriminator, of the path
lengths of its generator. PyTorch's side is channels-last and eager, with the papers' networks of
tests/twin_*.py: modulation by scaling, both updates by one pass of G, no gradients of D's weights
in G's update, one fused Adam each. `--device gpu` times bfloat16, and torch.compile too.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import harness
import step_time

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # where PyTorch's networks are

BATCH = {"sngan": 64, "stylegan2": 16, "gp": 64, "r1": 16, "path": 8}
CLASSES = 10


# ---- ours


def our_gan(options: argparse.Namespace):
    """The GAN of a case."""
    import jax.numpy as jnp
    import optax

    from aigc_jax.losses import adversarial
    from aigc_jax.methods.gan import GAN
    from aigc_jax.models import resnet_gan, stylegan2

    given = {"num_classes": CLASSES, "dtype": jnp.dtype(options.dtype)}
    adam = functools.partial(optax.adam, 2e-4, b1=0.0)
    if options.case in ("sngan", "gp"):
        width, hinge = options.width or 64, adversarial.hinge
        pair = (
            resnet_gan.Generator(width=width, **given),
            resnet_gan.Discriminator(width=width, spectral=options.case == "sngan", **given),
        )
        return GAN(*pair, adam(b2=0.9), adam(b2=0.9), loss=hinge, num_classes=CLASSES)
    width = options.width or 512
    generator = stylegan2.Generator(width=width, latent_dim=width, w_dim=width, **given)
    pair = generator, stylegan2.Discriminator(width=width, **given)
    return GAN(*pair, adam(b2=0.99), adam(b2=0.99), num_classes=CLASSES)


def ours(options: argparse.Namespace):
    """aigc_jax's."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.losses import penalties
    from aigc_jax.losses.regularizers import path_lengths
    from aigc_jax.methods import gan as method

    gan, b = our_gan(options), options.batch
    rng = jax.random.key(0)
    batch = {
        "image": jax.random.uniform(rng, (b, 32, 32, 3), minval=-1.0),
        "label": jnp.arange(b) % CLASSES,
        "index": jnp.arange(b),
    }
    state = jax.jit(functools.partial(method.init_state, gan))(rng, batch)
    if options.case in ("sngan", "stylegan2"):
        step = functools.partial(method.train_step, gan)
        run, facts = step_time.compiled_step(step, state, batch, rng, each=True)
    else:

        def critic(params, x):
            variables = {**state.d, "params": params}
            apply = gan.discriminator.apply
            return apply(variables, x, batch["label"], train=True, mutable=["spectral"])[0]

        def lengths(params):
            variables = {**state.g, "params": params}
            call = functools.partial(gan.generator.apply, variables, train=False)
            z = jax.random.normal(rng, (b, gan.generator.latent_dim))
            ws = call(z, batch["label"], method="mapping")
            noise = jax.random.normal(rng, batch["image"].shape)
            return jnp.mean(path_lengths(lambda ws: call(ws, method="synthesis"), ws, noise) ** 2)

        keys, fake = jax.random.split(rng, b), batch["image"][::-1]
        loss = {
            "gp": lambda p: penalties.gradient_penalty(
                functools.partial(critic, p), batch["image"], fake, keys
            ),
            "r1": lambda p: penalties.r1(functools.partial(critic, p), batch["image"]),
            "path": lengths,
        }[options.case]
        params = (state.g if options.case == "path" else state.d)["params"]
        started = time.perf_counter()
        slope = jax.jit(jax.grad(loss)).lower(params).compile()
        facts, holder = {"compile_s": time.perf_counter() - started}, {}
        run = harness.timer(
            lambda: holder.update(x=slope(params)), lambda: jax.block_until_ready(holder)
        )
    facts["parameters"] = sum(x.size for x in jax.tree.leaves(state.g["params"]))
    return run, facts


# ---- PyTorch's


def torch_networks(options: argparse.Namespace, device: str):
    """G and D of a case, called with latents or images and labels."""
    import torch
    import twin_sngan
    import twin_stylegan2

    if options.case in ("sngan", "gp"):
        width = options.width or 64
        g = twin_sngan.Generator((4 * width,) * 4, num_classes=CLASSES)
        d = twin_sngan.Discriminator(
            (2 * width,) * 4, num_classes=CLASSES, spectral=options.case == "sngan"
        )
    else:
        width = options.width or 512
        sizes = dict(width=width, num_classes=CLASSES)
        g = twin_stylegan2.Generator(latent_dim=width, w_dim=width, **sizes)
        d = twin_stylegan2.Discriminator(**sizes)
        twin_stylegan2.ModulatedConv.scaled = True
    layout = {"device": device, "memory_format": torch.channels_last}
    return g.to(**layout), d.to(**layout)


def torch(options: argparse.Namespace, compiled: bool = False):
    """PyTorch eager, channels-last."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, b = "cuda" if options.device == "gpu" else "cpu", options.batch
    g, d = torch_networks(options, device)
    adam = dict(lr=2e-4, betas=(0.0, 0.9), fused=True)
    g_adam, d_adam = (torch.optim.Adam(network.parameters(), **adam) for network in (g, d))
    run_g, run_d = (torch.compile(g), torch.compile(d)) if compiled else (g, d)
    is_style = options.case in ("stylegan2", "r1", "path")
    image = torch.rand(b, 3, 32, 32, device=device) * 2 - 1
    image = image.contiguous(memory_format=torch.channels_last)
    label = torch.arange(b, device=device) % CLASSES
    told = label if is_style else F.one_hot(label, CLASSES).float()
    latent = options.width or 512 if is_style else 128
    amp = functools.partial(torch.autocast, device, torch.bfloat16, enabled=device == "cuda")

    def step():
        with amp():
            fake = run_g(torch.randn(b, latent, device=device), told)
            if is_style:  # a minibatch's deviation is of real ones alone, or of made ones
                real_logits, fake_logits = run_d(image, told), run_d(fake.detach(), told)
                loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
            else:
                both = torch.cat([image, fake.detach()])
                real_logits, fake_logits = run_d(both, torch.cat([told, told])).chunk(2)
                loss = F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
        update(d_adam, loss)
        d.requires_grad_(False)  # no weight gradients of D in G's step
        with amp():
            logits = run_d(fake, told)
        update(g_adam, F.softplus(-logits).mean() if is_style else -logits.mean())
        d.requires_grad_(True)

    def update(optimizer, loss):
        optimizer.zero_grad(set_to_none=True)
        loss.float().backward()
        optimizer.step()

    def slopes(x, y, weights=None):
        return torch.autograd.grad(y, x, weights, create_graph=True)[0]

    def penalty():
        if options.case == "path":
            w = g.mapping_network(torch.randn(b, latent, device=device), told)
            ws = [w.clone() for _ in range(2 * len(g.resolutions))]
            made = g.synthesis(ws)
            noise = torch.randn_like(made) / 32
            parts = torch.autograd.grad((made * noise).sum(), ws, create_graph=True)
            squares = torch.stack([x.square().sum(1) for x in parts], 1)
            loss = squares.mean(1).mean()
        else:
            x = image
            if options.case == "gp":
                t = torch.rand(b, 1, 1, 1, device=device)
                x = x + t * (x.flip(0) - x)
            x = x.detach().requires_grad_(True)
            squares = slopes(x, d(x, told).sum()).square().sum([1, 2, 3])
            loss = (squares.sqrt() - 1).square().mean() if options.case == "gp" else squares.mean()
        network = g if options.case == "path" else d
        network.zero_grad(set_to_none=True)
        loss.backward()

    todo = step if options.case in ("sngan", "stylegan2") else penalty
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    started = time.perf_counter()
    todo()
    wait()
    facts = {"compile_s": time.perf_counter() - started}
    facts["parameters"] = sum(p.numel() for p in g.parameters())
    return harness.timer(todo, wait), facts


def torch_compiled(options: argparse.Namespace):
    """PyTorch under torch.compile."""
    return torch(options, compiled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(BATCH))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--width", type=int, help="default 64; StyleGAN2's maximum 512")
    parser.add_argument("--batch", type=int, help="default 64, 16 of StyleGAN2, 8 of path lengths")
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    options = parser.parse_args()
    options.dtype = "bfloat16" if options.device == "gpu" else "float32"
    batch = options.batch
    print(harness.machine("jax", "jaxlib", "flax", "torch"))
    for case in options.cases or BATCH:
        if case not in BATCH:
            parser.error(f"no case {case!r}: take of {', '.join(BATCH)}")
        options.case, options.batch = case, batch or BATCH[case]
        print(f"\n{case}, 32x32x3, batch {options.batch}, {options.device}, {options.dtype}\n")
        print(harness.beside_torch(ours, torch, options, "images", "parameters of G"), flush=True)
        if options.device == "gpu" and case in ("sngan", "stylegan2"):
            print(harness.beside_torch(ours, torch_compiled, options, "images", "parameters of G"))


if __name__ == "__main__":
    main()
