"""A GAN of label maps with a conditional random field on its output, told what to draw by a text.

The generator makes a channel for each label of `palette` (the background and the shapes' colours);
the field's mean-field iterations, whose potentials depend on the text too, smooth them; the
discriminator sees probabilities, `aigc sample` writes pictures in the palette's colours.

```
aigc train --config=configs/shapes_maps_gan.py
aigc sample --workdir runs/shapes_maps_gan --text "a large red circle above a small blue square"
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.data import shapes
from aigc_jax.methods import gan


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "shapes:2"
    config.task = "text_segments"
    config.data.text.length = 24
    config.palette = shapes.PALETTE.tolist()
    config.image_size = 32
    config.method = "gan"
    network = {"name": "fusion_gan", "width": 24, "patch": 2, "text_width": 64}
    config.generator = ConfigDict(
        {
            **network,
            "latent_dim": 64,
            "norm": "batch",
            "condition": "concat,film,attention",
            "crf": "mean_field",  # "": none
            "crf_window": 7,
            "crf_iterations": 3,
        }
    )
    config.discriminator = ConfigDict({**network, "condition": "concat,attention,auxiliary"})
    config.conditioning = gan.conditioning()
    config.conditioning.auxiliary = 0.2
    config.loss = "non_saturating"
    config.gradient_penalty = config.r2 = 0.0
    config.r1 = 2.0
    config.penalty_every = 4
    config.batch_size = 64
    config.num_train_steps = 8000
    config.steps_per_dispatch = 5
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 2e-4
    config.optimizer.b2 = 0.99
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.ema.half_life = 20_000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "shapes_probe" + (":smoke" if arg == "smoke" else "")
    config.eval.metrics = "fid,attributes,r_precision"
    return configs.finish(config, arg)
