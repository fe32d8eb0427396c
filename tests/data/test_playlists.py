"""Files that point elsewhere, and names that are addresses: nothing else is read or asked."""

import ctypes
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
from raw_videos import numbered_frames, write_video

from cosmos_hydra.data.decode_pool import DecodePool, UnreadableVideo

IN_ACCESS, IN_OPEN = 0x1, 0x20
PLAYLIST = "a playlist, no video file"
NO_VIDEO = "cannot be decoded (no video file, or cut off)"
M3U8 = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
MPD = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
BRANDS = struct.pack(">I4s4sI4s", 20, b"ftyp", b"mp42", 0, b"isom").decode()
LISTS: dict[str, tuple[str, str]] = {
    "hls": (M3U8, PLAYLIST),
    "hls_behind_a_mark": ("\ufeff" + M3U8, PLAYLIST),
    "hls_behind_space": ("\n\n  " + M3U8, PLAYLIST),
    "hls_master": ("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n", PLAYLIST),
    "hls_map": (M3U8.replace("#EXTINF", '#EXT-X-MAP:URI="{}"\n#EXTINF'), PLAYLIST),
    "hls_key": (M3U8.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF'), PLAYLIST),
    "hls_in_mp4": (BRANDS + M3U8, NO_VIDEO),
    "concat": ("ffconcat version 1.0\nfile '{}'\n", PLAYLIST),
    "concat_without_a_head": ("file '{}'\n", NO_VIDEO),
    "dash": (MPD, PLAYLIST),
    "dash_without_xml": (MPD.partition("\n")[2], PLAYLIST),
    "sdp": ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\na=control:{}\nm=video 9 RTP/AVP 96\n", PLAYLIST),
    "rtsp": ("RTSPtext\n{}\n", PLAYLIST),
    "pls": ("[playlist]\nFile1={}\nNumberOfEntries=1\n", PLAYLIST),
    "asx": ('<asx version="3"><entry><ref href="{}"/></entry></asx>', NO_VIDEO),
    "smil": ('<smil><body><video src="{}"/></body></smil>', PLAYLIST),
    "plain_list": ("{}\n", NO_VIDEO),
}
NAMES = (
    "http://{address}/x.mp4",
    "tcp://{address}",
    "rtsp://{address}/x",
    "concat:{file}|{file}",
    "file:{file}",
    "subfile,,start,0,end,0,,:{file}",
    "cache:http://{address}/x.mp4",
    "pipe:0",
    "data:video/mp4;base64,AAAA",
)


@dataclass
class Canary:
    """A file and a server that notice when they are touched."""

    file: Path
    server: socket.socket
    watch: int

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.server.getsockname())

    def touched(self) -> list[str]:
        """Return what was touched since the last look."""
        found = []
        if select.select([self.watch], [], [], 0.0)[0]:
            os.read(self.watch, 1 << 16)
            found.append("file")
        if select.select([self.server], [], [], 0.0)[0]:
            self.server.accept()[0].close()
            found.append("server")
        return found


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    file = tmp_path / "canary.ts"
    write_video(file, numbered_frames(5))
    watch = ctypes.CDLL(None).inotify_init()
    ctypes.CDLL(None).inotify_add_watch(watch, os.fsencode(file), IN_ACCESS | IN_OPEN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Canary(file, server, watch)
    os.close(watch)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1) as pool:
        yield pool


def test_the_canaries_sing(canary: Canary, tmp_path: Path) -> None:
    """FFmpeg left to itself follows lists, so silence below means something."""
    path = tmp_path / "list.m3u8"
    path.write_text(M3U8.format(canary.file))
    for name, touched in ((str(path), "file"), (f"http://{canary.address}/x.ts", "server")):
        with suppress(av.FFmpegError):
            av.open(name, timeout=0.5).close()
        assert canary.touched() == [touched]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_or_addresses_is_refused_and_not_followed(
    name: str, canary: Canary, pool: DecodePool, tmp_path: Path
) -> None:
    content, reason = LISTS[name]
    path = tmp_path / f"{name}.mp4"
    targets = (str(canary.file), canary.file.name, f"file:{canary.file}")
    for target in (*targets, f"http://{canary.address}/x.ts", f"tcp://{canary.address}"):
        path.write_text(content.replace("{}", target))
        with pytest.raises(UnreadableVideo) as caught:
            pool.probe(path)
        assert str(caught.value) == reason
        assert canary.touched() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_an_address_is_taken_for_a_file(
    name: str, canary: Canary, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name.format(address=canary.address, file=canary.file.name))
    with pytest.raises(UnreadableVideo) as caught:
        pool.decode(path, [0])
    assert str(caught.value) == "cannot be read (No such file or directory)"
    assert canary.touched() == []
