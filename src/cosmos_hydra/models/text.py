"""Text encoders: a caption to an embedding [T, D] with a mask of its real tokens.

Legend: T text tokens (512), D channels (1024). Rows past the caption are zero; the transformer
attends to them all the same, as the original does.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional

from cosmos_hydra.config import ModelConfig, TextEncoderKind
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.hub.sources import T5_NAMES, download_advice
from cosmos_hydra.models.identity import (
    TEXT_ENCODER,
    config_of,
    folder_identity,
    weights_folder,
)
from cosmos_hydra.models.pretrained import load_pretrained
from cosmos_hydra.reading import shown
from cosmos_hydra.seeds import torch_generator

KEY = "model.text_encoder.path"
CAPTIONS_AT_ONCE = 16  # 8,192 tokens at most, enough to fill a GPU
PADDED_TO = 64  # tokens; few lengths, few choices of kernels
# what is taken from config.json; the rest of it could name code and kernels to load
T5_SIZES = {
    **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), int),
    "relative_attention_num_buckets": int,
    "relative_attention_max_distance": int,
    "layer_norm_epsilon": float,
    "feed_forward_proj": str,
}


@dataclass(frozen=True)
class TextEmbedding:
    """One caption: embedding bfloat16 [T, D], mask bool [T], True for real tokens."""

    embedding_TD: torch.Tensor
    mask_T: torch.Tensor


class TextEncoder(Protocol):
    """What preprocessing and generation need of a text encoder."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells two encoders apart."""

    def encode(self, caption: str) -> TextEmbedding:
        """Return the embedding of one caption, on the CPU."""

    def encode_all(self, captions: Iterable[str]) -> Iterator[tuple[str, TextEmbedding]]:
        """Yield every caption with its embedding, in the order that is fastest."""


class HashTextEncoder:
    """Each word and position is a fixed random vector: no weights, yet captions differ."""

    def __init__(self, num_tokens: int, dim: int) -> None:
        self.num_tokens, self.dim = num_tokens, dim

    @property
    def identity(self) -> dict[str, Any]:
        kind = TextEncoderKind.hash.name
        return {"kind": kind, "num_tokens": self.num_tokens, "dim": self.dim}

    def encode(self, caption: str) -> TextEmbedding:
        words = re.findall(r"\w+", caption.lower())[: self.num_tokens]
        embedding_TD = torch.zeros(self.num_tokens, self.dim)
        for position, word in enumerate(words):
            generator = torch_generator("word", word)
            embedding_TD[position] = torch.randn(self.dim, generator=generator)
        mask_T = torch.arange(self.num_tokens) < len(words)
        return TextEmbedding(embedding_TD.to(torch.bfloat16), mask_T)

    def encode_all(self, captions: Iterable[str]) -> Iterator[tuple[str, TextEmbedding]]:
        return ((caption, self.encode(caption)) for caption in captions)


class T5TextEncoder:
    """The T5 encoder (t5-11b for the released models) from a folder in transformers layout.

    Loaded on first use.
    """

    def __init__(self, path: Path, num_tokens: int, device: torch.device) -> None:
        self.path, self.num_tokens, self.device = path, num_tokens, device
        self.tokenizer_path = _tokenizer_folder(path)
        self.at_once, self.padded_to = _batching(num_tokens, device)

    @cached_property
    def tokenize(self) -> Callable[[str], list[int]]:
        """What gives a caption's token ids, the end token last, num_tokens at most."""
        return _tokenizer(self.tokenizer_path, self.num_tokens)

    @cached_property
    def encoder(self) -> Any:
        from transformers import T5Config, T5EncoderModel

        found = config_of(KEY, self.path)
        sizes = {name: found[name] for name in T5_SIZES if name in found}
        wrong = [name for name, size in sizes.items() if not isinstance(size, T5_SIZES[name])]
        if wrong:
            raise StageError(f"{KEY}={self.path}: config.json has no sensible {wrong[0]}")
        config = T5Config(**sizes)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        loaded = load_pretrained(T5EncoderModel, KEY, self.path, config=config, dtype=dtype)
        return loaded.to(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        kind = TextEncoderKind.t5.name
        return {"kind": kind, "num_tokens": self.num_tokens, **folder_identity(self.path)}

    def encode(self, caption: str) -> TextEmbedding:
        return self._encode([self._ids(caption)])[0]

    def encode_all(self, captions: Iterable[str]) -> Iterator[tuple[str, TextEmbedding]]:
        found = sorted(((self._ids(caption), caption) for caption in captions), key=_length)
        for start in range(0, len(found), self.at_once):
            ids, batch = zip(*found[start : start + self.at_once], strict=True)
            yield from zip(batch, self._encode(ids), strict=True)

    def _ids(self, caption: str) -> list[int]:
        ids = self.tokenize(caption)
        if not all(0 <= number < self.encoder.config.vocab_size for number in ids):
            raise StageError(
                f"{self.tokenizer_path} holds the tokenizer of another encoder than {self.path}; "
                f"take both from the same place"
            )
        return ids

    @torch.no_grad()
    def _encode(self, ids: Sequence[list[int]]) -> list[TextEmbedding]:
        length_B = torch.tensor([len(tokens) for tokens in ids])
        steps = math.ceil(int(length_B.max()) / self.padded_to)
        num_tokens = min(self.num_tokens, steps * self.padded_to)
        ids_BT = torch.zeros(len(ids), num_tokens, dtype=torch.long)  # T5 pads with id 0
        for row_T, tokens in zip(ids_BT, ids, strict=True):
            row_T[: len(tokens)] = torch.tensor(tokens)
        mask_BT = torch.arange(self.num_tokens) < length_B[:, None]
        hidden_BTD = self.encoder(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BT[:, :num_tokens].long().to(self.device),
        ).last_hidden_state.cpu()
        hidden_BTD = functional.pad(hidden_BTD, (0, 0, 0, self.num_tokens - num_tokens))
        embedding_BTD = (hidden_BTD * mask_BT[:, :, None]).to(torch.bfloat16)
        # clones: what is kept of one caption does not keep the whole batch
        return [
            TextEmbedding(embedding_TD.clone(), mask_T.clone())
            for embedding_TD, mask_T in zip(embedding_BTD, mask_BT, strict=True)
        ]


def load_text_encoder(model: ModelConfig, device: torch.device) -> TextEncoder:
    """Return the configured text encoder."""
    if model.text_encoder.kind is TextEncoderKind.hash:
        return HashTextEncoder(model.text_tokens, model.text_dim)
    if not model.text_encoder.path:
        advice = download_advice(model, model.text_encoder.repo)
        raise ConfigError(f"{KEY}=null; {advice}set it to the folder of the T5 encoder")
    path = weights_folder(KEY, model.text_encoder.path, TEXT_ENCODER)
    dim = config_of(KEY, path).get("d_model")
    if dim != model.text_dim:
        raise ConfigError(
            f"model.text_encoder.path={path} gives {shown(dim)} channels but "
            f"model.text_dim={model.text_dim}; choose an encoder that fits the model"
        )
    return T5TextEncoder(path, model.text_tokens, device)


def _batching(num_tokens: int, device: torch.device) -> tuple[int, int]:
    """Return how many captions go together, and the step of the length they are padded to.

    Masked tokens decide nothing, so a GPU is given few of them; results differ by rounding.
    """
    return (CAPTIONS_AT_ONCE, PADDED_TO) if device.type == "cuda" else (1, num_tokens)


def _length(found: tuple[list[int], str]) -> int:
    return len(found[0])


def _tokenizer_folder(path: Path) -> Path:
    """Return where the T5 tokenizer lies: with the encoder, or beside it as diffusers saves it."""
    folders = (path, path.parent / "tokenizer")
    for folder in folders:
        if any((folder / name).is_file() for name in T5_NAMES):
            return folder
    raise ConfigError(
        f"{KEY}={path} holds no tokenizer ({' or '.join(T5_NAMES)}), "
        f"nor does {folders[1]}; put the files of the T5 tokenizer into one of them"
    )


def _tokenizer(folder: Path, num_tokens: int) -> Callable[[str], list[int]]:
    """Return what gives a caption's token ids.

    The file is read by the library it was written for: transformers' loader would follow
    tokenizer_config.json, which names code and other files.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    path = next(folder / name for name in T5_NAMES if (folder / name).is_file())
    try:
        if path.name == T5_NAMES[0]:
            fast = Tokenizer.from_file(str(path))
            fast.no_padding()
            fast.enable_truncation(num_tokens)
            return lambda caption: fast.encode(caption).ids
        pieces = SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise StageError(f"{path} is no T5 tokenizer ({shown(error)})") from error
    return lambda caption: [*pieces.encode(caption)[: num_tokens - 1], pieces.eos_id()]
