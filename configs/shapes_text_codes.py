"""A transformer that writes a picture's 16x16 codes as a sentence says: one or two shapes, 32x32.

30 minutes on two CPU cores. Colours, backgrounds and counts come out right in about nine of ten
pictures, shapes and relations in half: `aigc sample --guidance 0.5` to 1 is better than none.

```
aigc train --config=configs/shapes_vqvae.py
aigc train --config=configs/shapes_text_codes.py --config.frozen.autoencoder=runs/shapes_vqvae
aigc sample --workdir runs/shapes_text_codes --text "a large red circle above a small blue square"
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "shapes:2"
    config.task = "text"
    config.data.text.length = 24
    config.image_size = 32
    config.method = "code_prior"
    config.frozen.autoencoder = ""  # the workdir of a run of shapes_vqvae
    config.model = ConfigDict(
        {
            "name": "code_transformer",
            "width": 128,
            "depth": 4,
            "heads": 4,
            "block": 2,  # 64 squares of 2x2 codes
            "text_width": 64,
        }
    )
    config.conditioning.dropout = 0.1  # what guidance needs
    config.batch_size = 32
    config.num_train_steps = 8000
    config.steps_per_dispatch = 5
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.name = "adamw"
    config.optimizer.lr = 1.5e-3
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "shapes_probe" + (":smoke" if arg == "smoke" else "")
    config.eval.metrics = "fid,attributes,r_precision"
    return configs.finish(config, arg)
