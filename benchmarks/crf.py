"""Does a CRF on a generator's output help? Label maps by mean field, images by a Gaussian field.

    python benchmarks/crf.py [maps] [images] [--picture x.png]

maps: a small DCGAN generator learns by cross-entropy to make the label map of a scene of shapes
(background and 8 colours, 32 pixels) from its exact description. From there it is trained on for
the same few steps in four ways: alone, with a residual pair of 3x3 convolutions, and with mean
field behind it, which is or is not told the description too; the convolutions have as many
parameters as the told field. The logits are noisy in that training, a little or much; scores are
without noise, of scenes with new combinations too, and with noise. A boundary is matched within one
pixel.

images: pictures of shapes with noise of 5 to 50 grey levels, or blurred, through a Gaussian field
trained for noise, told its level or not, beside one 3x3 convolution that all channels share, told
or not: each has some ten parameters. PSNR in dB.
"""

import argparse
import time
from pathlib import Path

import harness
import numpy as np

SIZE, BATCH = 32, 32
NOISE = 4.0  # on logits whose labels lie 10 apart
HEADS = ("alone", "convolutions", "mean field", "mean field, told")
FILTERS = ("convolution", "convolution, told", "Gaussian field", "Gaussian field, told")


def source(split: str):
    from aigc_jax.data.dataset import Request
    from aigc_jax.data.shapes import read_shapes

    return read_shapes(Request("2", split, None, SIZE, 3, 0))


def described(scene: np.ndarray) -> np.ndarray:
    """(B, 3, 8) -> (B, 40): of two objects, one-hot shape, colour and size, place and radius."""
    there = scene[:, :2, :1]
    hot = [np.eye(n)[scene[:, :2, i].astype(int)] for i, n in ((1, 6), (2, 8), (3, 2))]
    place = 4 * (scene[:, :2, 5:] - (0.5, 0.5, 0.15))
    parts = np.concatenate([there, *hot, place], -1) * there
    return parts.reshape(len(scene), -1).astype(np.float32)


def maps_of(split: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Descriptions (B, 40) and label maps (B, S, S)."""
    fields = source(split).fields
    return described(fields["scene"].function(rows)), fields["segments"].function(rows)


def map_maker(head: str):
    """A module: (description, noise (B, S, S, 9)) -> log-probabilities (B, S, S, 9)."""
    import jax.numpy as jnp
    from flax import linen as nn

    from aigc_jax.layers.conv import Conv
    from aigc_jax.layers.crf import MeanFieldCRF
    from aigc_jax.models.dcgan import Generator

    class Maker(nn.Module):
        @nn.compact
        def __call__(self, told, noise, *, train):
            dcgan = Generator(SIZE, 9, told.shape[-1], width=16, name="generator")
            logits = 5 * dcgan(told, train=train) + noise
            if head == "convolutions":
                more = nn.relu(Conv(24, 3, name="first")(logits / 5))
                zeros = nn.initializers.zeros
                logits += Conv(9, 3, kernel_init=zeros, name="second")(more)
            if not head.startswith("mean field"):
                return nn.log_softmax(logits)
            crf = MeanFieldCRF(bandwidths=(3.0, 5.0, 1.0), name="crf")
            q = crf(logits, logits, told if head.endswith("told") else None)
            return jnp.log(jnp.maximum(q, 1e-6))

    return Maker()


def train(apply, params, state, batches, lr: float, of_head: float = 1.0):
    """Adam over `batches`, a cosine to 0; apply(params, state, batch) -> (loss, state).

    What isn't in params["generator"] learns `of_head` times as fast.
    """
    import jax
    import optax

    adam = lambda lr: optax.adam(optax.cosine_decay_schedule(lr, len(batches)))  # noqa: E731
    which = {name: "generator" if name == "generator" else "head" for name in params}
    tx = optax.partition({"generator": adam(lr), "head": adam(of_head * lr)}, which)

    @jax.jit
    def step(params, state, opt, batch):
        grads, state = jax.grad(apply, has_aux=True)(params, state, batch)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), state, opt

    opt = tx.init(params)
    for batch in batches:
        params, state, opt = step(params, state, opt, batch)
    return params, state


def boundary(maps: np.ndarray) -> np.ndarray:
    """(B, S, S) bool: pixels that differ from the next one down or to the right."""
    down = np.diff(maps, axis=1, append=maps[:, -1:]) != 0
    return down | (np.diff(maps, axis=2, append=maps[:, :, -1:]) != 0)


def near(edges: np.ndarray) -> np.ndarray:
    """Pixels within one of an edge."""
    framed = np.pad(edges, ((0, 0), (1, 1), (1, 1)))
    return np.any([framed[:, y : y + SIZE, x : x + SIZE] for y, x in np.ndindex(3, 3)], 0)


def map_scores(maps: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Mean intersection over union of the 9 labels, and the F of boundaries, in percent."""
    ious = [
        ((maps == k) & (truth == k)).sum() / ((maps == k) | (truth == k)).sum() for k in range(9)
    ]
    ours, theirs = boundary(maps.astype(int)), boundary(truth.astype(int))
    precision = (ours & near(theirs)).sum() / max(ours.sum(), 1)
    recall = (theirs & near(ours)).sum() / theirs.sum()
    f = 2 * precision * recall / max(precision + recall, 1e-9)
    return 100 * float(np.mean(ious)), 100 * float(f)


def fit_maps(head: str, batches, quiet: np.ndarray, lr: float, begun=None, noise: float = 0.0):
    """Variables and module.

    `begun` are the variables of a generator that has learned already; `noise`, up to which its
    logits are disturbed in training.
    """
    import jax
    import jax.numpy as jnp

    model = map_maker(head)
    init = jax.jit(model.init, static_argnames="train")
    variables = init(jax.random.key(0), batches[0][0], quiet, train=False)
    if begun:
        params = variables["params"] | begun["params"]
        variables = {"params": params, "batch_stats": begun["batch_stats"]}

    def loss(params, stats, batch):
        variables = {"params": params, "batch_stats": stats}
        level, draw = jax.random.split(jax.random.key(batch[2]))
        extra = jax.random.normal(draw, (BATCH, SIZE, SIZE, 9))
        extra *= noise * jax.random.uniform(level, (BATCH, 1, 1, 1))
        log_q, new = model.apply(variables, batch[0], extra, train=True, mutable=["batch_stats"])
        return -jnp.mean(jnp.sum(jax.nn.one_hot(batch[1], 9) * log_q, -1)), new["batch_stats"]

    params, stats = train(loss, variables["params"], variables["batch_stats"], batches, lr, 10.0)
    return {"params": params, "batch_stats": stats}, model


def label_maps(options: argparse.Namespace) -> None:
    import jax

    from aigc_jax.data.shapes import PALETTE

    rows = np.arange((options.steps + options.more) * BATCH).reshape(-1, BATCH)
    batches = [(*maps_of("train", part), i) for i, part in enumerate(rows)]
    held = {split: maps_of(split, np.arange(options.held_out)) for split in ("test", "novel")}
    quiet = np.zeros((1, SIZE, SIZE, 9), np.float32)
    noise = np.random.default_rng(0).normal(0, NOISE, (options.held_out, SIZE, SIZE, 9))
    begun, _ = fit_maps("alone", batches[: options.steps], quiet, 2e-3)
    table, shown = [], {"truth": held["test"][1]}
    for head in HEADS:
        started = time.process_time()
        variables, model = fit_maps(head, batches[options.steps :], quiet, 5e-4, begun, NOISE)
        seconds = time.process_time() - started
        apply = jax.jit(model.apply, static_argnames="train")
        found = []
        for split, extra in (("test", quiet), ("novel", quiet), ("test", noise)):
            told, truth = held[split]
            log_q = apply(variables, told, extra, train=False)
            maps = np.asarray(log_q).argmax(-1)
            found += map_scores(maps, truth)
            shown[f"{head}, {split}, noise {extra.std() > 0}"] = maps
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        table.append((head, count, *(f"{x:.1f}" for x in found), round(seconds)))
        print(*table[-1], flush=True)
    splits = ("test", "new combinations", "test, noise on the logits")
    heads = [f"{name}: {score}" for name in splits for score in ("mIoU", "boundary F")]
    print(harness.table(("", "parameters", *heads, "CPU s"), table))
    picture(options, "maps", {name: PALETTE[maps[:8]] for name, maps in shown.items()})


def damaged(split: str, rows: np.ndarray, level: float | None = None, blur: float = 0.0):
    """Pictures, what became of them, and the noise's level in [0, 1], drawn if it is not given."""
    from scipy.ndimage import gaussian_filter

    clean = source(split).read(rows)[0].astype(np.float32) / 127.5 - 1
    rng = np.random.default_rng(int(rows[0]))
    levels = rng.uniform(5, 50, len(rows)) if level is None else np.full(len(rows), level)
    seen = gaussian_filter(clean, (0, blur, blur, 0)) if blur else clean
    noise = rng.normal(size=clean.shape) * levels.reshape(-1, 1, 1, 1) / 127.5
    return clean, (seen + noise).astype(np.float32), (levels / 50).reshape(-1, 1).astype(np.float32)


def image_filter(name: str):
    """A module: (image, level (B, 1)) -> image."""
    import jax.numpy as jnp
    from flax import linen as nn

    from aigc_jax.layers.crf import GaussianCRF

    class Filter(nn.Module):
        @nn.compact
        def __call__(self, image, level):
            told = name.endswith("told")
            if name.startswith("Gaussian"):
                return GaussianCRF()(image, image, level if told else None)
            taps = self.param("taps", lambda _: jnp.eye(9)[4] * 1.0).reshape(1, 9)
            if told:
                taps = taps + nn.Dense(9, use_bias=False, kernel_init=nn.initializers.zeros)(level)
            taps = jnp.broadcast_to(taps, (len(image), 9))
            framed = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            return sum(
                taps[:, 3 * y + x].reshape(-1, 1, 1, 1) * framed[:, y : y + SIZE, x : x + SIZE]
                for y, x in np.ndindex(3, 3)
            )

    return Filter()


def psnr(image, clean) -> float:
    errors = ((np.clip(image, -1, 1) - clean) ** 2).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(4 / errors)))


def images(options: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    batches = [
        damaged("train", part) for part in np.arange(options.more * BATCH).reshape(-1, BATCH)
    ]
    rows = np.arange(options.held_out)
    held = {f"noise {level}": damaged("test", rows, level) for level in (5, 10, 25, 50)}
    held["blur of 1 pixel, noise 5"] = damaged("test", rows, 5, 1.0)
    shown = {"clean": held["noise 25"][0], "noise 25": held["noise 25"][1]}
    table = [("damaged", 0, *(f"{psnr(x, clean):.2f}" for clean, x, _ in held.values()), 0)]
    for name in FILTERS:
        model, started = image_filter(name), time.process_time()
        params = jax.jit(model.init)(jax.random.key(0), *batches[0][1:])["params"]

        def loss(params, state, batch, model=model):
            clean, seen, level = batch
            return jnp.mean((model.apply({"params": params}, seen, level) - clean) ** 2), state

        params, _ = train(loss, params, (), batches, 3e-2)
        seconds, apply = time.process_time() - started, jax.jit(model.apply)
        made = {key: apply({"params": params}, *seen) for key, (_, *seen) in held.items()}
        shown[name] = np.asarray(made["noise 25"])
        count = sum(x.size for x in jax.tree.leaves(params))
        scores = (f"{psnr(made[key], held[key][0]):.2f}" for key in held)
        table.append((name, count, *scores, round(seconds)))
        print(*table[-1], flush=True)
    print(harness.table(("PSNR, dB", "parameters", *held, "CPU s"), table))
    to_bytes = lambda x: np.uint8(np.clip(np.round((x + 1) * 127.5), 0, 255))  # noqa: E731
    picture(options, "images", {name: to_bytes(x[:8]) for name, x in shown.items()})


def picture(options: argparse.Namespace, part: str, rows: dict[str, np.ndarray]) -> None:
    """A row of 8 for each, three times as large."""
    from aigc_jax.writers import save_png, tile

    if options.picture:
        large = np.stack(list(rows.values())).repeat(3, 2).repeat(3, 3)
        save_png(tile(large), options.picture.with_stem(f"{options.picture.stem}_{part}"))
        print("rows:", *rows, sep="; ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["maps", "images"], help="maps, images or both")
    parser.add_argument("--steps", type=int, default=4000, help="of the generator of maps")
    parser.add_argument("--more", type=int, default=400, help="of maps in each way, and of images")
    parser.add_argument("--held-out", type=int, default=500, help="scenes that are scored")
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    harness.use_cores(options.threads)  # before jax is imported
    parts = {"maps": label_maps, "images": images}
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for name in options.parts:
        parts[name](options)
    print(harness.machine("jax"))


if __name__ == "__main__":
    main()
