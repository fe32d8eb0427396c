"""Open a video file and nothing else: no playlist, no network, no image sequence.

Which container a file is, its first bytes say, and FFmpeg is told so. Left to guess, it would
follow a list of other files or addresses that calls itself .mp4.
"""

import stat
from pathlib import Path
from typing import Any

import av

HEAD_BYTES = 64
QUICKTIME = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"styp")
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"<smil", b"v=0", b"[playlist]", b"RTSP")
# PyAV 19 decodes metadata later, when asked for it
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
DAMAGED = "cannot be decoded (damaged frames)"
NO_VIDEO = "cannot be decoded (no video file, or cut off)"


class Unreadable(Exception):
    """The file, or a part of it, gives no picture; the message is the reason in a few words."""


def open_video(path: str) -> tuple[Any, Any]:
    """Return the opened file and its video stream.

    Raises: Unreadable, OSError, av.FFmpegError.
    """
    options = {"protocol_whitelist": "file"}
    container: Any = av.open(path, format=demuxer(path), options=options, **LENIENT)
    try:
        return container, _video_stream(container)
    except Exception:
        container.close()
        raise


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    # the cover of an album is one picture, not a video
    if stream is None or stream.disposition & stream.disposition.attached_pic:
        raise Unreadable("no video stream")
    if stream.codec_context is None:
        raise Unreadable("cannot be decoded (codec unknown)")
    stream.codec_context.thread_count = 1
    return stream


def demuxer(path: str) -> str:
    """Return FFmpeg's name of the container, told by the first bytes alone.

    Raises: Unreadable, OSError.
    """
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("not a regular file")
    if found.st_size == 0:
        raise Unreadable("empty file")
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head[4:8] in QUICKTIME:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(PLAYLISTS):
        raise Unreadable("a playlist, no video file")
    raise Unreadable(NO_VIDEO)
