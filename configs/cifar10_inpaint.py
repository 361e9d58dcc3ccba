"""Fills holes in CIFAR-10's images: gated convolutions (Yu et al. 2019) and a patch discriminator.

Holes are free-form strokes and boxes; what is known is kept to the bit. A CPU core takes 20
minutes.

```
aigc train --config=configs/cifar10_inpaint.py
aigc evaluate --fake runs/cifar10_inpaint
aigc inpaint --workdir runs/cifar10_inpaint --input photo.png --mask hole.png --out whole.png
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import restoration


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "restoration"
    config.update(restoration.defaults())
    config.task = "inpaint"
    config.data.source = "tfds:cifar10"
    config.data.mask = "strokes|boxes"
    config.data.flip = True
    config.image_size = 32
    config.model = ConfigDict(
        {
            "name": "unet", "conv": "gated", "width": 48, "levels": 2, "blocks": 1,
            "dilations": (2,), "shuffle": 2, "residual": False,
        }
    )  # fmt: skip
    config.loss = "l1"
    config.hole_weight = 5.0
    config.adversary.weight = 0.2  # of the length of the pixels' gradient
    config.adversary.start = 0 if arg == "smoke" else 9000  # first the colours, then their grain
    config.adversary.discriminator.width = 32
    config.adversary.discriminator.num_layers = 2
    config.batch_size = 8
    config.num_train_steps = 14_000
    config.optimizer.lr = 8e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 300
    config.optimizer.schedule = "cosine"
    config.sample_every = config.checkpoint_every = 1000
    config.eval.num_samples = 2000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
