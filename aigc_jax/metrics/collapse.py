"""What the metrics of a GAN's steps say is going wrong, before the pictures show it."""


def diagnose(step: int, metrics: dict[str, float]) -> str | None:
    """A line on the first trouble that mean metrics of recent steps show; None: nothing.

    Thresholds are far from where healthy runs of the shipped configs go; in its first steps a
    generator makes one grey image, which is no collapse yet.

    Args:
      metrics: `diversity`, `d_accuracy`, `g_grad_norm` and `d_grad_norm`, as `methods.gan` tells.
    """
    if step < 300:
        return None
    if metrics["diversity"] < 0.1:
        return (
            f"generated images are {metrics['diversity']:.0%} as varied as real ones: "
            "mode collapse. Lower config.optimizer.lr or raise config.r1."
        )
    if metrics["d_accuracy"] > 0.9999:
        return (
            "the discriminator tells every generated image from a real one: the generator learns "
            "little. Lower config.discriminator.lr (its own learning rate) or raise config.r1."
        )
    norms = {name: metrics[name] for name in ("g_grad_norm", "d_grad_norm")}
    if max(norms.values()) > 1e3:
        name = max(norms, key=norms.get)
        return f"{name} is {norms[name]:.3g}: gradients explode. Lower config.optimizer.lr."
    return None
