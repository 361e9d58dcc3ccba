"""The conventions under which published Inception numbers were made; no two of them compare.

Resizing alone moves a FID by tens of points (Parmar et al., "On Aliased Resizing and Surprising
Subtleties in GAN Evaluation", CVPR 2022), so a protocol's name belongs to every number.
"""

import dataclasses
from typing import Literal

from aigc_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images reach Inception, and how FID and the Inception score are made of what it says.

    Attributes:
      name: of the protocol; part of every number's provenance.
      resize: to 299x299, a name in `resize.DEVICE` and `resize.HOST`.
      scaling: of [0, 255] to the network's input: "tf1" is (x - 128) / 128, in [-1, 0.992];
        "unit" is 2 (x / 255) - 1, in [-1, 1].
      ddof: covariances divide by N - ddof.
      logits: those of the Inception score: "logits_unbiased" leaves out the last layer's bias, as
        Salimans et al. (2016) did; "logits" has it.
      splits: of the Inception score, with bounds i * N // splits.
      split_size: consecutive chunks of so many images instead, the last one shorter.
      shuffle_seed: images are split in the order of `numpy.random.RandomState(seed).permutation`;
        None: in their own.
      spatial: whether the extractor also gives the features of sFID (Nash et al. 2021).
    """

    name: str
    resize: Literal["tf1", "half_pixel", "clean"] = "tf1"
    scaling: Literal["tf1", "unit"] = "tf1"
    ddof: int = 1
    logits: Literal["logits_unbiased", "logits"] = "logits_unbiased"
    splits: int = 10
    split_size: int | None = None
    shuffle_seed: int | None = 2020
    spatial: bool = False

    def inception_score_rule(self) -> dict[str, int | None]:
        """Keyword arguments of `inception_score.inception_score`."""
        names = ("splits", "shuffle_seed", "split_size")
        return {name: getattr(self, name) for name in names}


_ALL = (
    # TTUR's graph and Salimans' script; torch-fidelity gives these numbers.
    Protocol("tf1"),
    Protocol("pytorch_fid", resize="half_pixel", scaling="unit"),
    Protocol("clean", resize="clean"),
    # OpenAI's evaluator of guided diffusion (Dhariwal & Nichol 2021).
    Protocol("adm", split_size=5000, shuffle_seed=None, spatial=True),
    # NVIDIA's metrics of StyleGAN2 and 3, which divide covariances by N.
    Protocol("stylegan", ddof=0, shuffle_seed=None),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def find(name: str) -> Protocol:
    """The protocol of that name; raises UserError where there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol {name!r}.{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]
