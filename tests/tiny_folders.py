"""Tiny random weights of the real classes, in folders laid out like the released ones."""

from pathlib import Path

import torch

WORDS = ("<pad>", "</s>", "<unk>", "a", "robot", "arm", "lifts", "the", "red", "cube", "slowly")
T5_DIM = 32


def write_tiny_cosmos(folder: Path, data_BCFHW: torch.Tensor) -> None:
    """Write an AutoencoderKLCosmos whose statistics are those of its latents of the data.

    One number per channel and latent frame, channels outermost, as in the release.
    """
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(0)
    autoencoder = AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 16, 16),
        decode_block_out_channels=(8, 16, 16, 16),
        num_layers=1,
        latent_channels=16,
        latents_mean=None,
        latents_std=None,
    )
    with torch.no_grad():
        raw_BCFHW = autoencoder.encode(data_BCFHW).latent_dist.mode()
    autoencoder.register_to_config(
        latents_mean=raw_BCFHW.mean(dim=(0, 3, 4)).flatten().tolist(),
        latents_std=raw_BCFHW.std(dim=(0, 3, 4)).flatten().tolist(),
    )
    autoencoder.save_pretrained(folder)


def write_tiny_t5(folder: Path, tokenizer_folder: Path | None = None) -> None:
    """Write a T5 encoder, and a tokenizer that knows WORDS and ends a text with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tokenizer_folder or folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=T5_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)
