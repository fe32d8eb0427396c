"""Requests to the Hub through huggingface_hub's own session: lists of files, and content by range.

Up to 0.36 that session is of requests, from 1.0 on of httpx; the difference stays in here. Its own
download is not used: from 2.0 on it begins a cut file anew in the next process.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from cosmos_hydra.reading import shown

CHUNK_BYTES = 1 << 20
# between attempts that bring nothing; whoever asks for a longer pause is not asked again
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
LONGEST_PAUSE_S = 300.0
# what a request raises: the client's own kind, which is no OSError from 1.0 on, or that of a socket
NETWORK: tuple[type[BaseException], ...] = (HfHubHTTPError.__mro__[1], OSError)
COMMIT, SHA256, SHA1 = (re.compile(rf"[0-9a-f]{{{length}}}") for length in (40, 64, 40))
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Garbled(Exception):
    """The Hub's answer cannot be understood; asked again it may be."""


FAILURES: tuple[type[BaseException], ...] = (*NETWORK, Garbled)


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it; large ones have a sha256, others their name in git."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def blob(self) -> str:
        """Return its name in the cache of the Hub, which is the ETag."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """A commit and its files by path."""

    commit: str
    files: dict[str, HubFile]


def list_files(kind: str, repo: str, revision: str) -> Listing:
    """Return the commit that a revision is now, and its files.

    Raises: Garbled, or what huggingface_hub raises.
    """
    api, timeout = HfApi(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info: Any = api.repo_info(
            repo, repo_type=kind, revision=revision, files_metadata=True, timeout=timeout
        )
        found = [_hub_file(sibling) for sibling in info.siblings]
    except NETWORK as error:
        # requests' error of bad JSON is both
        if status_of(error) is not None or not isinstance(error, ValueError):
            raise
        raise Garbled(shown(error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Garbled(shown(error)) from error
    if not COMMIT.fullmatch(info.sha or ""):
        raise Garbled(f"commit {shown(info.sha)}")
    return Listing(info.sha, {file.path: file for file in found})


def _hub_file(sibling: Any) -> HubFile:
    """Return one file of a list. Raises: ValueError for what is no path or no hash."""
    path, lfs = sibling.rfilename, sibling.lfs
    sha256 = lfs["sha256"] if lfs else None
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{shown(path)} is no path")
    if not (SHA256.fullmatch(sha256 or "") if lfs else SHA1.fullmatch(sibling.blob_id or "")):
        raise ValueError(f"no hash of {shown(path)}")
    return HubFile(path, int(lfs["size"] if lfs else sibling.size), sha256, sibling.blob_id or "")


def content_url(kind: str, repo: str, commit: str, path: str) -> str:
    """Return the address of a file's content, at the Hub that HF_ENDPOINT names."""
    return hf_hub_url(repo, path, repo_type=kind, revision=commit, endpoint=constants.ENDPOINT)


def try_access(url: str) -> None:
    """Ask for a file's headers. Raises: what huggingface_hub raises where its content is closed."""
    get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextmanager
def open_content(url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield where the content that comes begins, `start` or 0, and its chunks."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # in requests that is a flag
        reply = session.stream("GET", url, headers=headers, timeout=timeout)
    else:
        reply = session.get(url, headers=headers, timeout=timeout, stream=True)
    with reply as response:
        hf_raise_for_status(response)
        read = getattr(response, "iter_bytes", None) or response.iter_content
        yield (start if response.status_code == 206 else 0), read(CHUNK_BYTES)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an answer, None where there was none."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def pause_asked_s(error: BaseException) -> float:
    """Return the seconds after which the Hub wants to be asked again."""
    response = getattr(error, "response", None)
    text = "" if response is None else response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() else 0.0


def is_passing(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    status = status_of(error)
    if status is None:
        # only errors of the disk name a file
        is_of_disk = isinstance(error, OSError) and error.filename is not None
        return not is_of_disk and not isinstance(error, OfflineModeIsEnabled)
    return (status in (408, 429) or status >= 500) and pause_asked_s(error) <= LONGEST_PAUSE_S


def described(error: BaseException) -> str:
    """Return in a few words what went wrong; texts of libraries hold addresses and more."""
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, Garbled):
        return f"the Hub's answer cannot be understood ({error})"
    if status is not None:
        pause_s = pause_asked_s(error)
        asks = f" and asks to wait {pause_s:.0f} s" if pause_s else ""
        return f"the Hub answers HTTP {status}{asks}"
    return f"the Hub does not answer ({type(error).__name__})"


def persistently(call: Callable[[], T], attempts: int = 4) -> T:
    """Return what a request returns, made again where that may help, with growing pauses.

    Raises: what the last one raised.
    """
    for pause_s in PAUSES_S[: attempts - 1]:
        try:
            return call()
        except FAILURES as error:
            if not is_passing(error):
                raise
            pause_s = max(pause_s, pause_asked_s(error))
            logger.info(f"{described(error)}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)
    return call()


def has_token() -> bool:
    """Return whether there is a token to show to the Hub."""
    return get_token() is not None


def new_login() -> str:
    """Return what to type in place of a token that is refused; the environment's comes first."""
    variables = " ".join(name for name in TOKEN_VARIABLES if os.environ.get(name))
    return f"{f'unset {variables}' if variables else 'hf auth logout'} && hf auth login"
