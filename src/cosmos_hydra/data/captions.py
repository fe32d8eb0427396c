"""Encode captions: every distinct one once, whichever process does it."""

import gc
import logging
from collections.abc import Iterator
from itertools import islice

import torch

from cosmos_hydra.config import Config
from cosmos_hydra.data.ledger import Ledger, Shares
from cosmos_hydra.data.plan import CAPTIONS_AT_ONCE, Work
from cosmos_hydra.data.writer import Texts
from cosmos_hydra.logs import progress
from cosmos_hydra.models.text import load_text_encoder

logger = logging.getLogger(__name__)


def encode_captions(
    config: Config, work: Work, texts: Texts, device: torch.device, ledger: Ledger
) -> None:
    """Write the embeddings that are missing; the encoder is gone when this returns."""
    needed = work.needed_captions

    def is_made(caption: str) -> bool:
        return caption not in needed or texts.path(caption).is_file()

    def encode(captions: Iterator[str]) -> None:
        encoder = load_text_encoder(config.model, device)
        # no more than a group at once, so that others find some
        while batch := list(islice(captions, CAPTIONS_AT_ONCE)):
            for caption, text in encoder.encode_all(batch):
                if text.mask_T.all():
                    logger.warning(
                        f"caption fills all {config.model.text_tokens} tokens and may be cut: "
                        f"{caption[:60]}..."
                    )
                texts.write(caption, text)
                bar.advance()

    with progress("encode text", len(needed), "captions") as bar:
        Shares(ledger, 0, work.caption_groups, is_made).work(encode)
    gc.collect()
