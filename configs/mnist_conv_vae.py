"""A convolutional VAE on stochastically binarized MNIST.

20 minutes on 2 CPU cores.

```
aigc train --config=configs/mnist_conv_vae.py
aigc evaluate --fake runs/mnist_conv_vae --metrics elbo,nll --k 500 --num 1000
aigc interpolate --workdir runs/mnist_conv_vae --out grid.png
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import vae


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:mnist"
    config.task = "generate"
    config.image_size = 28
    config.method = "vae"
    config.update(vae.defaults())
    config.encoder = ConfigDict({"name": "vae_resnet", "width": 16, "depth": 0, "hidden": 256})
    config.decoder = ConfigDict({"name": "vae_resnet", "width": 16, "depth": 0, "hidden": 256})
    config.latent_dim = 32
    config.likelihood = "bernoulli"  # a name of losses.likelihood
    config.batch_size = 128
    config.num_train_steps = 40_000
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 2000
    config.optimizer.lr = 2e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.ema.half_life = 200_000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
