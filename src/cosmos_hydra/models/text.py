"""Text encoders: a caption to an embedding [T, D] with a mask of its real tokens.

Legend: T text tokens (512), D channels (1024). Rows past the caption are zero; the transformer
attends to them all the same, as the original does.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from cosmos_hydra.config import ModelConfig, TextEncoderKind
from cosmos_hydra.errors import ConfigError
from cosmos_hydra.models.identity import TEXT_ENCODER, folder_identity, weights_folder
from cosmos_hydra.seeds import torch_generator


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


class T5TextEncoder:
    """The T5 encoder (t5-11b for the released models) from a folder in transformers layout.

    Loaded on first use.
    """

    def __init__(self, path: Path, num_tokens: int, device: torch.device) -> None:
        self.path, self.num_tokens, self.device = path, num_tokens, device
        self.tokenizer_path = _tokenizer_folder(path)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_path)

    @cached_property
    def encoder(self) -> Any:
        from transformers import T5EncoderModel

        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return (
            T5EncoderModel.from_pretrained(self.path, dtype=dtype, use_safetensors=True)
            .requires_grad_(False)
            .eval()
            .to(self.device)
        )

    @property
    def identity(self) -> dict[str, Any]:
        kind = TextEncoderKind.t5.name
        return {"kind": kind, "num_tokens": self.num_tokens, **folder_identity(self.path)}

    @torch.no_grad()
    def encode(self, caption: str) -> TextEmbedding:
        tokens = self.tokenizer(
            caption,
            max_length=self.num_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        hidden_BTD = self.encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state
        mask_T = tokens.attention_mask[0].bool()
        embedding_TD = hidden_BTD[0] * mask_T[:, None]
        return TextEmbedding(embedding_TD.to("cpu", torch.bfloat16), mask_T.cpu())


def load_text_encoder(model: ModelConfig, device: torch.device) -> TextEncoder:
    """Return the configured text encoder."""
    if model.text_encoder.kind is TextEncoderKind.hash:
        return HashTextEncoder(model.text_tokens, model.text_dim)
    if not model.text_encoder.path:
        raise ConfigError("model.text_encoder.path=null; set it to the folder of the T5 encoder")
    path = weights_folder("model.text_encoder.path", model.text_encoder.path, TEXT_ENCODER)
    dim = json.loads((path / "config.json").read_text()).get("d_model")
    if dim != model.text_dim:
        raise ConfigError(
            f"model.text_encoder.path={path} gives {dim} channels but "
            f"model.text_dim={model.text_dim}; choose an encoder that fits the model"
        )
    return T5TextEncoder(path, model.text_tokens, device)


def _tokenizer_folder(path: Path) -> Path:
    """Return where the T5 tokenizer lies: with the encoder, or beside it as diffusers saves it.

    Without these files transformers makes up a tokenizer that knows no word.
    """
    folders = (path, path.parent / "tokenizer")
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return folder
    raise ConfigError(
        f"model.text_encoder.path={path} holds no tokenizer (tokenizer.json or spiece.model), "
        f"nor does {folders[1]}; put the files of the T5 tokenizer into one of them"
    )
