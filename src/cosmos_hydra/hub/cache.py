"""What was downloaded, found again without the Hub: our records, and its cache as others left it.

A record, JSON below HF_HOME/cosmos-hydra, says for one revision of a repository which commit it is
and which verified files there are. The files lie in the ordinary cache of the Hub.
Imports huggingface_hub, which says where that is, only where it is called.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from cosmos_hydra import files
from cosmos_hydra.config import ModelConfig, WeightsFormat
from cosmos_hydra.hub.sources import T5_BIN, TRANSFORMER, Part, model_parts
from cosmos_hydra.reading import plain_name, read_json

INDEX = "*.safetensors.index.json"


def home() -> Path:
    """Return our folder below HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "cosmos-hydra"


def hub_folder(kind: str, repo: str) -> Path:
    """Return where the cache of the Hub keeps a repository: blobs/, refs/ and snapshots/."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *repo.split("/")])


@dataclass
class Record:
    """What is known of one revision: its commit, verified files, and the files of each part."""

    kind: str
    repo: str
    revision: str
    commit: str
    files: dict[str, dict[str, str | int]] = field(default_factory=dict)  # sha256 and size
    parts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def snapshot(self) -> Path:
        """Return the folder of the files."""
        return hub_folder(self.kind, self.repo) / "snapshots" / self.commit

    def has(self, path: str) -> bool:
        """Return whether a verified file is still there, as far as its size tells."""
        known, file = self.files.get(path), self.snapshot / path
        return known is not None and file.is_file() and file.stat().st_size == known["size"]

    def holds(self, part: Part) -> bool:
        """Return whether every file of a part is there."""
        paths = self.parts.get(part.name, [])
        return bool(paths) and all(map(self.has, paths))

    def write(self) -> None:
        """Store the record crash-safely."""
        files.write_json(_record_file(self.kind, self.repo, self.revision), asdict(self))


def read_record(part: Part) -> Record | None:
    """Return what is known of the revision that a part belongs to."""
    try:
        record = Record(**read_json(_record_file(part.kind, part.repo, part.revision)))
        return record if record.commit and isinstance(record.files, dict) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # none, or damaged: what is there is verified again


def _record_file(kind: str, repo: str, revision: str) -> Path:
    return home() / "records" / f"{hub_folder(kind, repo).name}@{quote(revision, safe='')}.json"


def converted_folder(record: Record) -> Path:
    """Return where our own form of a repository's weights lies, whether there or not."""
    return home() / "converted" / hub_folder(record.kind, record.repo).name / record.commit


def find(part: Part) -> Path | None:
    """Return where a part lies if all of it is there, by our record or by the Hub's own cache."""
    record = read_record(part)
    if record is not None and record.holds(part):
        layout = part.layout_of(record.parts[part.name])
        if layout is None:
            return None
        if layout is T5_BIN:
            folder = converted_folder(record)
            return folder if folder.is_dir() else None  # it appears when it is whole
        return record.snapshot / layout.place
    return _found_in_hub_cache(part)


def _found_in_hub_cache(part: Part) -> Path | None:
    """Return where another tool put a part; of files in folders, as the index of weights tells."""
    folder = hub_folder(part.kind, part.repo)
    try:
        reference = folder / "refs" / part.revision
        commit = reference.read_text().strip() if reference.is_file() else part.revision
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    paths = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]
    for layout in part.layouts:
        if layout in (T5_BIN, TRANSFORMER[WeightsFormat.nemo]):
            continue  # to be converted first; and nothing tells whether all of it is there
        place = snapshot / layout.place
        if layout.select(paths) and (place.is_file() or _has_what_its_index_names(place)):
            return place
    return None


def _has_what_its_index_names(folder: Path) -> bool:
    try:
        for index in folder.glob(INDEX):
            names: Iterable[object] = read_json(index)["weight_map"].values()
            if not all((folder / plain_name(name)).is_file() for name in set(names)):
                return False
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False
    return True


def fill_paths(model: ModelConfig, with_weights: bool = True) -> None:
    """Set the paths of weights, tokenizer and text encoder that are null to what was downloaded."""
    for section, part in model_parts(model, with_weights).items():
        place = find(part)
        if place is not None:
            getattr(model, section).path = str(place)
