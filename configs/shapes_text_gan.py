"""A GAN that draws what a sentence says: one or two shapes, 32x32, with a text encoder of its own.

Each network reads the caption by a small transformer. The generator is modulated by it and attends
to its words; the discriminator sees captions that are not true of their images, and has to find an
image's caption among those of the others.

Slow to learn: after 27 CPU minutes (8,400 of the 16,000 steps) colours and rough places were right
and shapes were not; the discriminator wins. `shapes_text_codes` learns the same in less time.

```
aigc train --config=configs/shapes_text_gan.py
aigc sample --workdir runs/shapes_text_gan --text "a large red circle above a small blue square"
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import gan


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "shapes:2"
    config.task = "text"
    config.data.text.length = 24
    config.image_size = 32
    config.method = "gan"
    config.generator = ConfigDict(
        {
            "name": "fusion_gan",
            "width": 48,
            "blocks": "strided",
            "latent_dim": 64,
            "norm": "batch",
            "condition": "concat,film,attention",
            "text_width": 64,
        }
    )
    config.discriminator = ConfigDict(
        {
            "name": "fusion_gan",
            "width": 48,
            "blocks": "strided",
            "condition": "concat,attention,auxiliary",
            "text_width": 64,
        }
    )
    config.conditioning = gan.conditioning()
    config.conditioning.auxiliary = 0.2
    config.loss = "non_saturating"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 32
    config.num_train_steps = 6000
    config.steps_per_dispatch = 5
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.999
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.ema.half_life = 10_000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "shapes_probe" + (":smoke" if arg == "smoke" else "")
    config.eval.metrics = "fid,attributes,r_precision"
    return configs.finish(config, arg)
