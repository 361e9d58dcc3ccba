"""What the metrics of a GAN's steps say is going wrong, before the pictures show it."""

from collections.abc import Mapping

_LOWER = "Lower config.optimizer.lr (or the networks' own)"
_BEGUN = 300  # in its first steps a generator makes one grey image, which is no collapse yet


def diagnose(step: int, metrics: Mapping[str, float]) -> str | None:
    """A line on the first trouble that mean metrics of recent steps show; None: nothing.

    Thresholds are far from where healthy runs of the shipped configs go.

    Args:
      metrics: `diversity`, `d_accuracy`, `g_grad_norm` and `d_grad_norm`, as `methods.gan` tells.
    """
    if line := collapsed(step, metrics):
        return line
    if step >= _BEGUN and metrics["d_accuracy"] > 0.9999:
        return (
            "the discriminator tells every generated image from a real one: the generator learns "
            "little. Lower config.discriminator.lr (its own learning rate) or raise config.r1."
        )
    return None


def collapsed(step: int, metrics: Mapping[str, float]) -> str | None:
    """The part of `diagnose` that a run does not recover from by itself."""
    if step < _BEGUN:
        return None
    if metrics["diversity"] < 0.1:
        return (
            f"generated images are {metrics['diversity']:.0%} as varied as real ones: "
            f"mode collapse. {_LOWER} or raise config.r1."
        )
    if metrics["diversity"] > 2.5:
        return (
            f"generated images are {metrics['diversity']:.1f} times as varied as real ones: the "
            f"generator makes noise. {_LOWER}."
        )
    norms = {name: metrics[name] for name in ("g_grad_norm", "d_grad_norm")}
    if max(norms.values()) > 1e4:
        name = max(norms, key=norms.get)
        return f"{name} is {norms[name]:.3g}: gradients explode. {_LOWER}."
    return None


def fallen_back(distance: float, best: float) -> str | None:
    """A line where the Frechet distance has grown to twice its best; None: it hasn't."""
    if not distance > 2 * best:
        return None
    return (
        f"the distance to real images is {distance:.4g}, and was {best:.4g} at its best: the "
        "generator has come apart. config.eval.best=eval_fid keeps the best checkpoint."
    )
