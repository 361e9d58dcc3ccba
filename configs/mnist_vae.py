"""The VAE of Burda et al. 2016 (section 5): 784-200-200-50, stochastically binarized MNIST.

Published test NLL: 86.76 nats; importance weighted by 50 samples 84.78, by 5 85.54. They train for
3,280 passes with batches of 20, this for 1,000 with batches of 100: 40 minutes on one CPU core.
After 20 minutes, with 320,000 steps, the NLL is 87.59 (k = 500).

```
aigc train --config=configs/mnist_vae.py
aigc evaluate --fake runs/mnist_vae --metrics elbo,nll --k 5000 --json scores.json
aigc train --config=configs/mnist_vae.py --workdir=runs/mnist_iwae --config.objective=iwae \\
    --config.num_samples=5 --config.kl_warmup_steps=0
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
    config.encoder = ConfigDict({"name": "vae_mlp", "width": 200, "depth": 2})
    config.decoder = ConfigDict({"name": "vae_mlp", "width": 200, "depth": 2})
    config.latent_dim = 50
    config.likelihood = "bernoulli"  # a name of losses.likelihood
    config.kl_warmup_steps = 20_000  # units stay in use while the decoder learns
    config.batch_size = 100
    config.num_train_steps = 600_000
    config.steps_per_dispatch = 20
    config.log_every = 600
    config.sample_every = config.checkpoint_every = 6000
    config.optimizer.lr = 2e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.ema.half_life = 200_000.0
    config.eval.nll_samples = 500
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
