"""What NVIDIA's `prepare_dataset.py` does for every chunk, in its order and with its data types.

The peer of `preprocess.py`; the program itself needs a container with NeMo. Its tokenizer is a
TorchScript graph, here diffusers' module as it comes; its T5 encoder is transformers' here too.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

# a video, and the first frames of the chunks to take from it
Plan = dict[Path, list[int]]


def read_video(path: Path) -> tuple[torch.Tensor, float]:
    """Return all frames of a file, uint8 [F, H, W, 3], and its frame rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)), float(stream.average_rate)


@torch.no_grad()
def run_old_script(
    plan: Plan,
    ids: list[int],
    autoencoder: Any,
    text_encoder: Any,
    device: torch.device,
    size: tuple[int, int, int, int],
    out: Path,
) -> Counter[str]:
    """Make the chunks of a plan, one after the other; return seconds spent in each stage.

    `size` has frames, height, width, and text tokens.
    """
    frames, height, width, num_tokens = size
    spent: Counter[str] = Counter()

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        began_s = time.perf_counter()
        result = work()
        spent[stage] += time.perf_counter() - began_s
        return result

    def resize(chunk: torch.Tensor) -> torch.Tensor:
        resized = torch.nn.functional.interpolate(
            chunk.permute(0, 3, 1, 2).float(),
            size=(height, width),
            mode="bilinear",
            antialias=True,
        )
        return resized.round().to(torch.uint8)

    def copy(chunk: torch.Tensor) -> torch.Tensor:
        video = chunk.to(torch.bfloat16).transpose(0, 1)[None]
        # its dtype is another only in the rehearsal on a CPU
        return video.to(device, autoencoder.dtype, non_blocking=True) / 127.5 - 1.0

    def encode(video: torch.Tensor) -> torch.Tensor:
        return autoencoder.encode(video).latent_dist.mode()[0].cpu()

    def encode_text() -> tuple[torch.Tensor, torch.Tensor]:
        ids_BT = torch.zeros(1, num_tokens, dtype=torch.long)
        ids_BT[0, : len(ids)] = torch.tensor(ids)
        mask_BT = (torch.arange(num_tokens) < len(ids))[None].long()
        hidden_BTD = text_encoder(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)
        ).last_hidden_state
        hidden_BTD[0, len(ids) :] = 0
        return hidden_BTD[0].cpu().to(torch.bfloat16), torch.ones(num_tokens, dtype=torch.bfloat16)

    def write(latent: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor], fps: float) -> None:
        torch.save(latent, out / f"{number}.video_latent.pth")
        torch.save(text[0], out / f"{number}.t5_text_embeddings.pth")
        torch.save(text[1], out / f"{number}.t5_text_mask.pth")
        info = {"height": height, "width": width, "fps": fps, "num_frames": frames}
        info |= {"video_path": path.name, "start_frame": start}
        (out / f"{number}.info.json").write_text(json.dumps(info))

    number = 0
    for path, starts in plan.items():
        video_FHWC, fps = timed("decode the whole video", lambda path=path: read_video(path))
        for start in starts:
            chunk = video_FHWC[start : start + frames]
            chunk = timed("resize on the CPU", lambda chunk=chunk: resize(chunk))
            chunk = timed("cast on the CPU and copy", lambda chunk=chunk: copy(chunk))
            latent = timed("encode", lambda chunk=chunk: encode(chunk))
            text = timed("T5", encode_text)
            timed("write", lambda latent=latent, text=text, fps=fps: write(latent, text, fps))
            number += 1
    return spent
