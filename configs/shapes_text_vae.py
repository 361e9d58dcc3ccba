"""A conditional VAE that draws what a sentence says: one or two shapes, 32x32.

Not trained to the end yet: after four minutes it drew blurred objects and ignored the text.

```
aigc train --config=configs/shapes_text_vae.py
aigc sample --workdir runs/shapes_text_vae --text "a large red circle above a small blue square"
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import vae


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "shapes:2"
    config.task = "text"
    config.data.text.length = 24
    config.image_size = 32
    config.method = "vae"
    config.update(vae.defaults())
    network = {"name": "fusion_vae", "width": 24, "patch": 2, "text_width": 64}
    config.encoder = ConfigDict(network)
    config.decoder = ConfigDict({**network, "condition": "concat,film,attention"})
    config.latent_dim = 16  # few: what they could tell of shapes and colours, the text tells
    config.likelihood = "gaussian"  # a name of losses.likelihood
    config.conditioning.dropout = 0.1
    config.kl_warmup_steps = 500
    config.batch_size = 32
    config.num_train_steps = 7000
    config.steps_per_dispatch = 5
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200
    config.ema.half_life = 10_000.0
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "shapes_probe" + (":smoke" if arg == "smoke" else "")
    config.eval.metrics = "fid,attributes,r_precision"
    return configs.finish(config, arg)
