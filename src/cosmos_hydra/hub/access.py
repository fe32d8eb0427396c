"""Before anything is fetched: which repositories are open, what is in them, what is missing."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from cosmos_hydra.hub import client
from cosmos_hydra.hub.cache import Record, converted_folder, find, hub_folder, read_record
from cosmos_hydra.hub.client import HubFile
from cosmos_hydra.hub.sources import T5_BIN, Part

PARTIAL_SUFFIX = ".incomplete"
# bfloat16 in place of float32, and the encoder is half of T5 at most
CONVERTED_SHARE = 0.25
COLUMNS = ("repository", "revision", "state", "to fetch")


@dataclass
class Repository:
    """One revision of a repository: what is wanted of it, and what stands in the way."""

    parts: list[Part]
    record: Record | None
    state: str = "complete"
    # what is wrong and what to do; empty = nothing
    problem: str = ""
    # to fetch or to verify
    wanted: list[HubFile] = field(default_factory=list)
    size_bytes: int = 0
    missing_bytes: int = 0
    converted_bytes: int = 0

    @property
    def part(self) -> Part:
        """Return a part, for what all have in common."""
        return self.parts[0]

    @property
    def is_complete(self) -> bool:
        """Return whether nothing is to be asked for."""
        return not self.wanted and not self.problem


def survey(parts: Iterable[Part]) -> list[Repository]:
    """Return the repositories of some parts, having asked the Hub about those that lack something.

    Fetches no content.
    """
    common = attrgetter("kind", "repo", "revision")
    found = []
    for _, group in groupby(sorted(parts, key=common), key=common):
        members = list(group)
        repository = Repository(members, read_record(members[0]))
        record = repository.record
        if record is not None and all(map(record.holds, members)):
            paths = {path for part in members for path in record.parts[part.name]}
            repository.size_bytes = sum(int(record.files[path]["size"]) for path in paths)
        else:
            _ask(repository)
        found.append(repository)
    return found


def _ask(repository: Repository) -> None:
    part, known = repository.part, repository.record
    try:
        validate_repo_id(part.repo)
    except HFValidationError:
        repository.state = "no such name"
        repository.problem = f"{part.setting} is no name of a repository; write owner/name"
        return
    try:
        revision = known.commit if known else part.revision
        listing = client.persistently(lambda: client.list_files(part.kind, part.repo, revision))
        record = known or Record(part.kind, part.repo, part.revision, listing.commit)
        repository.record = record
        wanted: set[str] = set()
        for each in repository.parts:
            layout = each.layout_of(listing.files)
            if layout is None:
                repository.state, repository.problem = "lacks files", _lacking(each)
                return
            record.parts[each.name] = layout.select(listing.files)
            wanted |= set(record.parts[each.name])
            if layout is T5_BIN and not converted_folder(record).is_dir():
                size = listing.files["pytorch_model.bin"].size
                repository.converted_bytes = int(CONVERTED_SHARE * size)
        chosen = [listing.files[path] for path in sorted(wanted)]
        repository.size_bytes = sum(file.size for file in chosen)
        repository.wanted = [file for file in chosen if not record.has(file.path)]
        blobs = hub_folder(part.kind, part.repo) / "blobs"
        repository.missing_bytes = sum(_missing_bytes(file, blobs) for file in repository.wanted)
        if repository.missing_bytes:
            largest = max(repository.wanted, key=attrgetter("size"))
            url = client.content_url(part.kind, part.repo, record.commit, largest.path)
            client.persistently(lambda: client.try_access(url))
        repository.state = "accessible"
    except client.FAILURES as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the disk
        repository.state, repository.problem = explained(error, repository)
        is_silent = client.status_of(error) is None
        if is_silent and all(find(each) for each in repository.parts):
            # put there by another tool; it cannot be verified now
            repository.state, repository.problem, repository.wanted = "in the cache", "", []


def _missing_bytes(file: HubFile, blobs: Path) -> int:
    whole, partial = blobs / file.blob, blobs / f"{file.blob}{PARTIAL_SUFFIX}"
    if whole.is_file() and whole.stat().st_size == file.size:
        return 0
    return max(0, file.size - (partial.stat().st_size if partial.is_file() else 0))


def _lacking(part: Part) -> str:
    needed = " or ".join(", ".join(layout.needed) for layout in part.layouts)
    advice = "choose another repository"
    if part.setting.startswith("model.weights."):
        advice = "choose another model.weights.format (diffusers, original, nemo) or repository"
    return f"{part.setting} has no {part.name}: {needed}; {advice}"


def explained(error: BaseException, repository: Repository) -> tuple[str, str]:
    """Return the state of a repository that cannot be read, and a line on what to do."""
    part, status, has_token = repository.part, client.status_of(error), client.has_token()
    page = f"https://huggingface.co/{'datasets/' * (part.kind == 'dataset')}{part.repo}"
    if isinstance(error, GatedRepoError):
        how = "with the account of your token" if has_token else "then type: hf auth login"
        advice = f"open {page} and accept it, {how}"
        return "licence to accept", f"{part.setting} wants its licence accepted; {advice}"
    if isinstance(error, RevisionNotFoundError):
        commit = repository.record.commit if repository.record else part.revision
        key = f"{part.revision_key or part.repo}={part.revision}"
        gone = f" (commit {commit[:12]})" if repository.record else ""
        return "no such revision", (
            f"{key}{gone} is not in {part.repo}; choose a branch, tag or commit of {page}/commits"
        )
    if status == 401 and has_token:
        return "token refused", (
            f"{part.setting}: the Hub refuses your token (HTTP 401); type: {client.new_login()}"
        )
    if isinstance(error, RepositoryNotFoundError):
        advice = "" if has_token else ", or if it is private type: hf auth login"
        seen = " or your token may not see it" if has_token else " or is not public"
        return "not found", f"{part.setting} does not exist{seen}; check the name{advice}"
    if status == 401:
        return "no token", f"{part.setting} wants a token; type: hf auth login"
    if status == 403:
        return "no access", (
            f"{part.setting}: your token has no right to read it (HTTP 403); "
            f"type: {client.new_login()}"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return "offline", (
            f"{part.setting} is not in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; "
            f"unset it, or download on a machine with network and share HF_HOME"
        )
    return "no answer", (
        f"{part.setting}: {client.described(error)}; look at network and proxy, HF_ENDPOINT is "
        f"{constants.ENDPOINT}, then run the same command"
    )


def table(repositories: list[Repository]) -> list[str]:
    """Return a line for each repository, aligned, and one for the disk."""
    rows = [COLUMNS]
    for repository in repositories:
        part = repository.part
        left = f"{size_text(repository.missing_bytes)} of {size_text(repository.size_bytes)}"
        left = "-" if repository.problem else left
        rows.append((part.repo, part.revision, repository.state, left))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [*lines, f"disk: {size_text(free_bytes())} free in {constants.HF_HUB_CACHE}"]


def summary(repository: Repository) -> str:
    """Return what became of a repository, and how to move to another revision of it."""
    part, record = repository.part, repository.record
    if record is None:
        return f"{part.repo}: found in the cache, not verified: the Hub was not asked"
    state = "nothing to fetch" if repository.is_complete else "fetched and verified"
    other = f"; for another one set {part.revision_key}" if part.revision_key else ""
    return f"{part.repo}: {state}, commit {record.commit[:12]} of {part.revision}{other}"


def disk_problem(repositories: list[Repository]) -> str:
    """Return a line where the disk is too small for what is missing, else nothing."""
    needed = sum(one.missing_bytes + one.converted_bytes for one in repositories)
    free = free_bytes()
    if needed <= free:
        return ""
    return (
        f"HF_HOME={constants.HF_HOME} has {size_text(free)} free but {size_text(needed)} are "
        f"needed; free some space, or export HF_HOME=FOLDER on a larger disk"
    )


def free_bytes() -> int:
    """Return the free space of the disk that the cache of the Hub is on."""
    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(place for place in (cache, *cache.parents) if place.exists())
    return shutil.disk_usage(existing).free


def size_text(size_bytes: float) -> str:
    """Return a size in words: 312 B, 4.2 MB, 24.1 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes:.0f} B"
