"""LaMa (Suvorov et al. 2022) on a folder of photographs, 256 pixels: wide holes, fast Fourier ones.

The generator as published (27 million parameters), Adam 1e-3 and 1e-4. Of its losses this has L1 of
the known pixels and the adversarial one, at their published ratio; its gradient penalty, feature
matching and perceptual network are not here. Boxes are its own, strokes DeepFillv2's, which are
narrower. Published FID on Places, with all of its losses and wide masks: 2.21. Not run here.

```
aigc train --config=configs/places_lama.py --config.data.source=folder:places/train \\
    --config.eval.source=folder:places/val
aigc inpaint --workdir runs/places_lama --input photo.jpg --mask hole.png --out whole.png
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
    config.data.source = "folder:places/train"
    config.data.mask = "strokes(1..5)|boxes(1..4)"
    config.data.load_size = 286
    config.data.flip = True
    config.image_size = 256
    config.channels = 3
    config.model = ConfigDict({"name": "lama", "width": 64, "blocks": 9})
    config.loss = "l1"
    config.hole_weight = 0.0  # the hole is the discriminator's affair
    config.adversary.loss = "non_saturating"
    config.adversary.weight = 1.0
    config.adversary.adaptive = False
    config.adversary.lr = 1e-4
    config.adversary.discriminator.num_layers = 3
    config.batch_size = 32
    config.num_train_steps = 1_000_000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.dtype = "bfloat16"
    config.sample_every = config.checkpoint_every = 5000
    config.eval.source = "folder:places/val"
    config.eval.extractor = "inception"
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
