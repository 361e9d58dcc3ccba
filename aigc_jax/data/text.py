"""Captions to what a network reads: token ids, or a frozen encoder's embeddings.

The config's section `data.text` says which: an `encoder` that is trained with the image's network,
"transformer", or a frozen one, "minilm" or "clip"; `length`, the most tokens of a caption;
`tokenizer`, a file in place of a vocabulary of the captions; `weights`, a frozen encoder's file or
folder; `features`, whether a frozen encoder's tokens are kept beside its sentence.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from aigc_jax.data import tokens
from aigc_jax.data.embedder import Embedder
from aigc_jax.data.tokens import Reader, train
from aigc_jax.errors import UserError

__all__ = ["Embedder", "Reader", "load", "reader", "train"]


def reader(
    section: Mapping[str, Any], captions: Callable[[], Iterable[str]] | None = None
) -> Reader:
    """What reads captions as the config's section `data.text` says.

    Args:
      captions: of the data, of which a vocabulary is made where the section names no tokenizer.

    Raises:
      UserError: an unknown encoder, or what it needs is missing.
    """
    if section["encoder"] != "transformer":
        return Embedder.of(section)
    tokens.check_length(section["length"])
    if section["tokenizer"]:
        return load(section, "")
    if captions is None:
        raise UserError("The run kept no tokenizer: it can't read a text.")
    return train(captions(), section["length"])


def load(section: Mapping[str, Any], workdir: str | Path) -> Reader:
    """The Reader of the tokenizer that `section` names, else of the one that `save` wrote.

    Args:
      section: the config's `data.text`, of an encoder that is trained.
      workdir: of the run.

    Raises:
      UserError: no such file, or one that cannot be read.
    """
    path = Path(section["tokenizer"] or Path(workdir, tokens.FILE)).expanduser()
    if not path.is_file():
        raise UserError(f"no tokenizer {str(path)!r}: training writes one into its workdir")
    tokenizer = tokens.saved(path)
    if [tokenizer.token_to_id(token) for token in tokens.SPECIAL] != [0, 1, 2, 3]:
        first = ", ".join(tokens.SPECIAL)
        raise UserError(f"{path} numbers its tokens otherwise: the first four must be {first}")
    return Reader(tokenizer, section["length"])
