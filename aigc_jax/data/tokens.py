"""Captions to token ids, by a vocabulary that is trained here or comes with an encoder."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.errors import UserError

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
FILE = "tokenizer.json"
MOST_WORDS = 5000  # of a vocabulary of whole words
MOST_PIECES = 8192  # of one of pieces of words
_MOST_CAPTIONS = 200_000  # that a vocabulary is trained on

Specs = dict[str, tuple[tuple[int, ...], Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Captions as token ids, for an encoder that is trained.

    Attributes:
      tokenizer: a `tokenizers.Tokenizer`, without truncation and padding.
      length: T, the most tokens, with those that begin and end a caption.
    """

    tokenizer: Any
    length: int

    def __call__(self, captions: Sequence[str | bytes]) -> dict[str, np.ndarray]:
        """The fields of captions (B,); what is too long is cut, and still ends as others do.

        Returns:
          `text` (B, T) int32 and `text_mask` (B, T) bool, True for a real token, those that begin
          and end the caption included. The empty caption is these two alone: the null condition.
        """
        text, mask = self.tokens(captions)
        return {"text": text, "text_mask": mask}

    @property
    def specs(self) -> Specs:
        """Shape, without B, and dtype of each field."""
        return {"text": ((self.length,), np.int32), "text_mask": ((self.length,), np.bool_)}

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are."""
        return self.tokenizer.get_vocab_size()

    def tokens(self, captions: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (B, T) int32 and their mask (B, T) bool."""
        ids = np.full((len(captions), self.length), PAD, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, encoding in enumerate(self._cut.encode_batch([string(c) for c in captions])):
            ids[row, : len(encoding)] = encoding.ids
            mask[row, : len(encoding)] = True
        return ids, mask

    def unknown(self, caption: str) -> list[str]:
        """The words that it does not know, as they stand in the caption."""
        encoding = self.tokenizer.encode(caption)
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        words = [
            encoding.word_to_chars(word)
            for token, word in zip(encoding.tokens, encoding.word_ids, strict=True)
            if token == unknown and word is not None
        ]
        return [caption[start:stop] for start, stop in dict.fromkeys(words)]

    def check(self, caption: str) -> None:
        """UserError for a caption without a word, or longer than `length`."""
        encoding = self.tokenizer.encode(caption)
        if all(encoding.special_tokens_mask):
            raise UserError(f"The text {caption!r} holds no word: say what the image shows.")
        if len(encoding) > self.length:
            raise UserError(
                f"The text {_short(caption)!r} has {len(encoding)} tokens and this model reads at "
                f"most {self.length}: shorten it."
            )

    def save(self, workdir: str | Path) -> None:
        """Writes workdir/tokenizer.json, which `load` reads."""
        self.tokenizer.save(str(Path(workdir, FILE)))

    @functools.cached_property
    def _cut(self) -> Any:
        """The tokenizer with truncation, a copy: `check` counts without."""
        cut = type(self.tokenizer).from_str(self.tokenizer.to_str())
        cut.enable_truncation(self.length)
        return cut


def train(captions: Iterable[str], length: int) -> Reader:
    """A Reader with the vocabulary of these captions, the same for the same captions.

    Of whole words where they are few, else of pieces of them (byte-pair encoding, Sennrich et al.
    2016). Case and punctuation do not count. Ids: 0 pads, 1 is unknown, 2 begins, 3 ends.

    Raises:
      UserError: no words; a length below 3.
    """
    check_length(length)
    captions = [string(c) for c in itertools.islice(captions, _MOST_CAPTIONS)]
    tokenizer = _words(captions)
    if tokenizer.get_vocab_size() == len(SPECIAL):
        raise UserError("The captions hold no words: a vocabulary cannot be made of them.")
    if tokenizer.get_vocab_size() > MOST_WORDS:
        tokenizer = _pieces(captions)
    return Reader(tokenizer, length)


def _words(captions: list[str]) -> Any:
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.WordLevelTrainer(
        vocab_size=MOST_WORDS + 1, special_tokens=list(SPECIAL), show_progress=False
    )
    model = models.WordLevel(unk_token=SPECIAL[UNKNOWN])
    return _trained(model, trainer, pre_tokenizers.WhitespaceSplit(), captions)


def _pieces(captions: list[str]) -> Any:
    """Words begin with a sign of their own.

    Not end with one, or continue with one: the package numbers these pieces in no order, and
    vocabularies of the same captions differ.
    """
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=MOST_PIECES, special_tokens=list(SPECIAL), show_progress=False
    )
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(split=False)]
    model = models.BPE(unk_token=SPECIAL[UNKNOWN])
    return _trained(model, trainer, pre_tokenizers.Sequence(words), captions)


def _trained(model: Any, trainer: Any, split: Any, captions: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, normalizers, processors

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\p{P}+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(captions, trainer)
    begin, end = SPECIAL[BEGIN], SPECIAL[END]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, BEGIN), (end, END)]
    )
    return tokenizer


def string(caption: str | bytes) -> str:
    """A caption as the pipeline hands it over, in UTF-8, as a string."""
    return caption.decode() if isinstance(caption, bytes) else str(caption)


def _short(caption: str) -> str:
    return caption if len(caption) <= 60 else f"{caption[:57]}..."


def saved(path: Path) -> Any:
    """The tokenizer of a tokenizer.json; UserError for one that cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what the package raises is an Exception and no more
        raise UserError(f"{path} is no tokenizer that can be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def published(folder: Path) -> Any:
    """The tokenizer beside an encoder's weights.

    Of tokenizer.json, or BERT's WordPiece of vocab.txt (lower case, unless tokenizer_config.json
    says otherwise), or CLIP's byte pairs of vocab.json and merges.txt. UserError without any.
    """
    if (folder / FILE).is_file():
        return saved(folder / FILE)
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _clip(folder)
    raise UserError(
        f"no tokenizer in {folder}: put {FILE}, or vocab.txt, or vocab.json and merges.txt beside "
        "the weights"
    )


def _wordpiece(folder: Path) -> Any:
    """Devlin et al. 2019; google-research/bert, tokenization.py."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = (folder / "vocab.txt").read_text("utf-8").splitlines()
    vocabulary = {word: number for number, word in enumerate(words)}
    config = folder / "tokenizer_config.json"
    lower = not config.is_file() or json.loads(config.read_text()).get("do_lower_case", True)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _between(tokenizer, "[CLS]", "[SEP]", folder)


def _clip(folder: Path) -> Any:
    """Radford et al. 2021; openai/CLIP, simple_tokenizer.py, less ftfy and HTML's entities."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    end = "<|endoftext|>"
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    model = models.BPE.from_file(*files, end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    runs = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(runs, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _between(tokenizer, "<|startoftext|>", end, folder)


def _between(tokenizer: Any, begin: str, end: str, folder: Path) -> Any:
    """With the tokens that begin and end every caption."""
    from tokenizers import processors

    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    missing = [token for token, number in ids if number is None]
    if missing:
        raise UserError(f"the vocabulary in {folder} has no {missing[0]}: it is another encoder's")
    tokenizer.add_special_tokens([begin, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=ids
    )
    return tokenizer


def check_length(length: int) -> None:
    """UserError for fewer tokens than a caption takes."""
    if length < 3:
        raise UserError(f"config.data.text.length is {length}: a caption takes 3 tokens or more.")
