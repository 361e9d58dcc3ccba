"""A conditional convolutional VAE on scikit-learn's handwritten digits (Sohn et al. 2015).

A minute on 2 CPU cores; `colab/03_vae.ipynb` walks its latent plane.

```
aigc train --config=configs/digits_cvae.py
aigc sample --workdir runs/digits_cvae --label 3 --out threes.png
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import vae


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "digits"
    config.task = "label"
    config.image_size = 32
    config.method = "vae"
    config.update(vae.defaults())
    config.encoder = ConfigDict({"name": "vae_resnet", "width": 16, "depth": 0, "hidden": 0})
    config.decoder = ConfigDict({"name": "vae_resnet", "width": 16, "depth": 0, "hidden": 0})
    config.latent_dim = 4
    config.likelihood = "bernoulli"  # a name of losses.likelihood
    config.batch_size = 64
    config.num_train_steps = 1600
    config.sample_every = config.checkpoint_every = 400
    config.optimizer.lr = 2e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.ema.half_life = 5000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "digits_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
