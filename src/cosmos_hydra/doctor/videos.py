"""Videos: whether both codecs robot data comes in are really decoded, and whether there are any."""

import base64
import tempfile
import time
from importlib import metadata
from pathlib import Path

from cosmos_hydra.config import Config, SourceKind
from cosmos_hydra.doctor.findings import Finding, fix, ok, reason
from cosmos_hydra.doctor.packages import broken, install

LOOK_S, ENOUGH = 3.0, 1000
LEVELS = (60, 180)  # grey of the two frames
SIZE = 64
TOLERANCE = 6
# two grey frames of 64 x 64 in AV1, encoded by SVT-AV1 4.1: no encoder for it is needed here
AV1_IVF = (
    "REtJRgAAIABBVjAxQABAABgAAAABAAAAAgAAAAAAAAAgAAAAAAAAAAAAAAASAAoKAAAAAq//jV8wCDIQEACwggUUII"
    "EAAAgAlc8ZgBcAAAABAAAAAAAAABIAMhMwAgQJJJI7GAAAAgAAAAAALDP0"
)


def decoding(config: Config) -> Finding:
    """Find whether decord decodes H.264, which is encoded first, and AV1."""
    problem = broken("av")
    if problem:
        return problem
    # the old package `decord` would overwrite the module
    replace = f"pip uninstall -y decord && {install('decord2', force=True)}"
    problem = broken("decord2", "cosmos_hydra.data.decoder")
    if problem:
        return fix(problem.text, replace)
    import numpy as np

    from cosmos_hydra.data.video import write_mp4

    version = f"decord2 {metadata.version('decord2')}"
    with tempfile.TemporaryDirectory() as folder:
        h264, av1 = Path(folder, "h264.mp4"), Path(folder, "av1.ivf")
        frames = np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in LEVELS])
        try:
            write_mp4(h264, frames, fps=24.0)
        except Exception as error:  # noqa: BLE001 (libraries differ in what they raise)
            return fix(f"H.264 cannot be encoded ({reason(error)})", install("av", force=True))
        av1.write_bytes(base64.b64decode(AV1_IVF))
        for codec, path in (("H.264", h264), ("AV1", av1)):
            wrong = _wrong(path)
            if wrong:
                return fix(f"{version} does not decode {codec} ({wrong})", replace)
    return ok(f"{version} decodes H.264 and AV1")


def _wrong(path: Path) -> str | None:
    """Return what is wrong with how decord reads a file, None if the frames come out right."""
    from cosmos_hydra.data.decoder import decord

    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0))
        found = reader.get_batch([0, 1]).asnumpy().mean((1, 2, 3))
    except (decord.DECORDError, RuntimeError) as error:
        return reason(error).rpartition("] ")[2]
    is_right = abs(found - LEVELS).max() < TOLERANCE
    return None if is_right else "frames come out wrong"


def source(config: Config) -> Finding:
    """Find whether data.source holds videos, without opening any or looking for long."""
    from cosmos_hydra.data.video import VIDEO_SUFFIXES

    given = config.data.source
    if config.data.kind is SourceKind.synthetic:
        return ok("rendered by stage=preprocess, nothing to set")
    if given is None:
        return fix("not set", "data.source=FOLDER with the folder of your videos")
    root, until_s, count = Path(given).expanduser(), time.monotonic() + LOOK_S, 0
    if not root.is_dir():
        return fix(f"{given} is no folder", "data.source=FOLDER with the folder of your videos")
    for path in root.rglob("*"):
        count += path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."
        if count == ENOUGH or time.monotonic() > until_s:
            return ok(f"{given}, at least {count} videos")
    if count == 0:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        advice = "data.source=FOLDER with the folder of your videos"
        return fix(f"{given} holds no videos; looked for {suffixes}", advice)
    return ok(f"{given}, {count} videos")
