"""A convolutional VAE on CIFAR-10, by the discretized logistic likelihood: bits/dim, and blur.

The plain baseline of `cifar10_vqvae`, `cifar10_code_prior` and `cifar10_vqgan`. 9 minutes on one
CPU core for 3,000 steps.

```
aigc train --config=configs/cifar10_vae.py
aigc evaluate --fake runs/cifar10_vae --metrics elbo,nll,psnr,fid
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import vae


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.task = "generate"
    config.image_size = 32
    config.method = "vae"
    config.update(vae.defaults())
    config.encoder = ConfigDict({"name": "vae_resnet", "width": 32, "depth": 0, "hidden": 0})
    config.decoder = ConfigDict({"name": "vae_resnet", "width": 32, "depth": 0, "hidden": 0})
    config.latent_dim = 128
    config.likelihood = "discretized_logistic"  # a name of losses.likelihood
    config.batch_size = 128
    config.num_train_steps = 6000
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.ema.half_life = 100_000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
