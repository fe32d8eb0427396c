"""Complete a folder of samples: write the manifest, then remove what it does not name."""

import logging

from cosmos_hydra import config as schema
from cosmos_hydra import files
from cosmos_hydra.config import Config
from cosmos_hydra.data.keys import text_key
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.ledger import Ledger
from cosmos_hydra.data.plan import Work, remove_unwanted, unwanted_samples
from cosmos_hydra.data.readers import has_readers
from cosmos_hydra.data.store import FORMAT_VERSION
from cosmos_hydra.errors import StageError

# what makes two folders hold the same samples
IDENTITY = ("samples", "tokenizer", "text_encoder")
logger = logging.getLogger(__name__)


def complete(config: Config, layout: Layout, work: Work, ledger: Ledger) -> None:
    """Write the manifest, without the videos that failed; for one process, when all is made."""
    inventory, failed = work.inventory, ledger.reported()
    for video in sorted(failed):
        logger.warning(f"{video}: {failed[video]}; its clips are left out")
        work.left_out[video] = work.plan["videos"][video]
        inventory.drop(video, failed[video])
    if not inventory.clips:
        raise StageError(f"data.source={config.data.source} gives no sample: {inventory.summary()}")
    if failed:
        logger.info(inventory.summary())
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": work.plan["settings"],
        "config": schema.to_dict(config),
        "tokenizer": work.tokenizer,
        "fitted_tokenizer": work.fitted_tokenizer,
        "text_encoder": work.text_encoder,
        **inventory.describe(),
        # looked at too, so that the same command need not look again
        "left_out": work.left_out,
        "broken": {video: inventory.hashes[video] for video in sorted(failed)},
        "samples": [
            {
                "id": work.ids[clip],
                "split": clip.split,
                "video": clip.video,
                "start_frame": clip.start_frame,
                "fps": clip.fps,
                "caption": work.caption(clip),
            }
            for clip in inventory.clips
        ],
    }
    manifest["content_hash"] = files.sha256_of_json({key: manifest[key] for key in IDENTITY})
    files.write_json(layout.manifest, manifest)
    wanted = {entry["id"] for entry in manifest["samples"]}
    texts = {f"{text_key(caption, work.text_encoder)}.safetensors" for caption in work.captions}
    # those made now that a broken video takes with it were spoken of
    unwanted = len(unwanted_samples(layout, wanted).keys() & work.there)
    if unwanted and has_readers(layout):
        logger.warning(
            f"{unwanted} samples in {layout.folder} are no longer wanted but a run reads them; "
            f"they are kept until the same command is given after its end"
        )
        return
    remove_unwanted(layout, wanted, texts)
    if unwanted:
        logger.info(f"removed {unwanted} samples that are no longer wanted")
    layout.beside("plan.json").unlink(missing_ok=True)
