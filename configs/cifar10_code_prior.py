"""A class-conditional transformer over the 8x8 codes of CIFAR-10's VQ-VAE: images by sampling them.

About 15 minutes on one CPU core.

```
aigc train --config=configs/cifar10_vqvae.py
aigc train --config=configs/cifar10_code_prior.py --config.frozen.autoencoder=runs/cifar10_vqvae
aigc sample --workdir runs/cifar10_code_prior --label 7 --out horses.png
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.image_size = 32
    config.method = "code_prior"
    config.frozen.autoencoder = ""  # the workdir of a run of cifar10_vqvae
    config.model = ConfigDict(
        {"name": "code_transformer", "width": 128, "depth": 4, "heads": 4, "dropout": 0.0}
    )
    config.conditioning.dropout = 0.1  # what guidance needs
    config.batch_size = 64
    config.num_train_steps = 3000
    config.optimizer.name = "adamw"
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
