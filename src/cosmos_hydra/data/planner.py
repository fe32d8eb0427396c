"""Enter a folder of samples: alone, to plan what is made there, or beside those who make it.

Whoever is alone leaves `plan.json`; whoever comes later with the same plan joins. A folder whose
manifest says what is asked for is left as it is, and no video is opened.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cosmos_hydra import claim, files
from cosmos_hydra.changes import difference
from cosmos_hydra.config import Config, TokenizerKind
from cosmos_hydra.data import sources
from cosmos_hydra.data.digests import Digests
from cosmos_hydra.data.inventory import Inventory, messages, settings, take_inventory
from cosmos_hydra.data.keys import fit_key
from cosmos_hydra.data.layout import Layout
from cosmos_hydra.data.ledger import POLL_S, Ledger
from cosmos_hydra.data.plan import (
    Work,
    changes,
    facts_of,
    lacks_text,
    samples_in,
    whole_samples,
)
from cosmos_hydra.data.store import MISSHAPEN
from cosmos_hydra.errors import StageError
from cosmos_hydra.models.text import load_text_encoder
from cosmos_hydra.models.tokenizer import load_tokenizer
from cosmos_hydra.reading import read_json

PATIENCE_S = 1.0
logger = logging.getLogger(__name__)


class Planner:
    """One command that wants samples in a folder.

    `begin` is called when nothing is left that would be refused; `fit` makes the tokenizer that is
    fitted on the videos, if there is one.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        device: torch.device,
        begin: Callable[[], None],
        fit: Callable[[Config, Inventory, Path], None],
    ) -> None:
        self.config, self.layout, self.device = config, layout, device
        self.begin, self.fit = begin, fit
        self.plan_file = layout.beside("plan.json")
        self.manifest: dict[str, Any] | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what decides what the samples hold. Raises: ConfigError for missing weights."""
        return settings(self.config)

    @cached_property
    def found(self) -> sources.Found:
        return sources.find(self.config.data)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every video, by name; read again only where it has changed."""
        # of a file that holds many episodes, once
        videos = {one.video for one in self.found.episodes}
        digests = {video: self.digests.sha256_of(video) for video in sorted(videos)}
        return {one.name: digests[one.video] for one in self.found.episodes}

    @cached_property
    def digests(self) -> Digests:
        return Digests(self.layout.hashes)

    @cached_property
    def facts(self) -> dict[str, dict[str, str]]:
        return facts_of(self.found, self.hashes)

    @cached_property
    def inventory(self) -> Inventory:
        return take_inventory(self.config, self.found, self.hashes)

    def plan(self, ledger: Ledger) -> Work | None:
        """Enter the folder and return what is to be made there; None if nothing is.

        Raises: StageError when the folder is not ours, or others fill it with something else.
        """
        assert self.settings  # refused before anything else
        since_s, is_told = time.monotonic(), False
        while True:
            is_alone = ledger.enter()
            if is_alone is not None:
                self.manifest = self._read_manifest()
            if is_alone:
                return self._lead(ledger)
            if is_alone is False:
                others = self._others_changes()
                if others == []:
                    return self._join(ledger)
                if others is None and self._changes() == [] and self._is_whole():
                    self._leave_as_it_is()
                    return None
                if others and not claim.is_patient:
                    raise StageError(
                        f"data.path={self.layout.folder} is being filled with other samples "
                        f"({_shown(others)}) by {ledger.owner}{claim.ADVICE}"
                    )
            if not is_told and time.monotonic() - since_s > PATIENCE_S:
                logger.info(f"waiting: data.path={self.layout.folder} is in use by {ledger.owner}")
                is_told = True
            ledger.leave()
            time.sleep(POLL_S)

    def _lead(self, ledger: Ledger) -> Work | None:
        """Plan, with nobody else in the folder, and let others in."""
        layout = self.layout
        # the NeMo reader would take them for samples
        files.remove_leftovers(layout.folder, layout.texts)
        files.remove_leftovers(layout.folder.parent, prefix=f".{layout.folder.name}.")
        self._check_ours()
        with files.naming(layout.lock):
            ledger.sign()
        since = self._changes()
        if since == [] and not self.plan_file.exists() and self._is_whole():
            self.digests.save()
            self._leave_as_it_is()
            return None
        self._check_encoders()
        for line in messages(self.config, self.inventory):
            logger.info(line)
        if since:
            logger.info(f"changed since the samples were made: {_shown(since)}")
        self.begin()
        model = self.config.model
        logger.info(
            f"encoding with the {model.tokenizer.kind} tokenizer and the "
            f"{model.text_encoder.kind} text encoder on {self.device}, into {layout.folder}"
        )
        self.digests.save()
        files.write_json(self.plan_file, self._plan)
        fitted = layout.beside(self._fitted or "none")
        if self._fitted and not fitted.is_file():
            self.fit(self.config, self.inventory, fitted)
        work = self.work()
        self._drop_halves(work)
        logger.info(work.summary())
        self._share(ledger, work)
        return work

    def _join(self, ledger: Ledger) -> Work:
        """Work beside others by the same plan."""
        self._check_encoders()
        self.begin()
        work = self.work()
        ledger.num_groups = work.num_groups
        logger.info(f"sharing {work.summary()}, with {ledger.owner}")
        return work

    def _leave_as_it_is(self) -> None:
        self.begin()
        if self.manifest and self.manifest["format_version"] == 1:
            logger.info(f"samples in {self.layout.folder} are of an earlier version and are kept")
        logger.info(f"samples in {self.layout.folder} are up to date")

    def _check_ours(self) -> None:
        """Raise StageError for a folder in which nothing may be changed."""
        layout = self.layout
        if self.manifest is not None:
            since = self._changes()
            if since and self.manifest["format_version"] == 1:
                raise StageError(
                    f"data.path={layout.folder} holds samples of an earlier version, made "
                    f"otherwise ({_shown(since)}); choose another data.path or remove the folder"
                )
        elif not self.plan_file.is_file() and layout.folder.is_dir():
            ours = (layout.lock, layout.hashes)
            if any(path not in ours for path in layout.folder.iterdir()):
                raise StageError(
                    f"data.path={layout.folder} is not empty and not ours; choose another data.path"
                )

    def _read_manifest(self) -> dict[str, Any] | None:
        """Return what the folder says it holds; None if it says nothing."""
        path = self.layout.manifest
        if not path.is_file():
            return None
        with self._naming_damage():
            found = read_json(path)
            if not isinstance(found["format_version"], int):
                raise ValueError("no version")
            return found

    def _changes(self) -> list[str] | None:
        """Return what is other than when the folder was made; None if it was not."""
        if self.manifest is None:
            return None
        with self._naming_damage():
            return changes(self.manifest, self.settings, self.facts)

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except MISSHAPEN as error:
            raise StageError(
                f"{self.layout.manifest} is damaged; remove {self.layout.folder} and preprocess "
                f"again"
            ) from error

    def _is_whole(self) -> bool:
        """Return whether all that the manifest names is there."""
        old = self.manifest
        assert old is not None
        with self._naming_damage():
            fitted = old.get("fitted_tokenizer")
            captions = {entry["caption"] for entry in old["samples"]}
            is_ours = old["format_version"] > 1
            return (
                {entry["id"] for entry in old["samples"]} <= whole_samples(self.layout)
                and not (is_ours and lacks_text(self.layout, captions, old["text_encoder"]))
                and (not fitted or self.layout.beside(fitted).is_file())
            )

    def _others_changes(self) -> list[str] | None:
        """Return what differs from the plan of those at work; None if they have none."""
        try:
            theirs = read_json(self.plan_file)
        except (OSError, ValueError):
            return None
        found = difference(theirs["settings"], self.settings)
        return found or difference(theirs["videos"], self._plan["videos"], "video")

    @cached_property
    def _plan(self) -> dict[str, Any]:
        kept = {name: self.facts[name] for name in self.inventory.episodes}
        return {"settings": self.settings, "videos": kept}

    @property
    def _fitted(self) -> str | None:
        """Return the file name of the tokenizer that is fitted on the videos, if one is."""
        is_toy = self.config.model.tokenizer.kind is TokenizerKind.toy
        return f"tokenizer-{fit_key(self.settings)}.safetensors" if is_toy else None

    def _tokenizer(self) -> dict[str, Any]:
        fitted = self.layout.beside(self._fitted or "none")
        return load_tokenizer(self.config.model, fitted, self.device).identity

    def _check_encoders(self) -> None:
        """Raise ConfigError when an encoder is missing; no weights are read."""
        load_text_encoder(self.config.model, self.device)
        if not self._fitted:
            self._tokenizer()

    def work(self) -> Work:
        """Return what the folder is to hold and what of it is there."""
        work = Work(
            data=self.config.data,
            plan=self._plan,
            left_out={k: v for k, v in self.facts.items() if k not in self._plan["videos"]},
            inventory=self.inventory,
            tokenizer=self._tokenizer(),
            text_encoder=load_text_encoder(self.config.model, self.device).identity,
            fitted_tokenizer=self._fitted,
            there=whole_samples(self.layout),
        )
        lacking = lacks_text(self.layout, work.captions, work.text_encoder)
        work.there -= {name for clip, name in work.ids.items() if work.caption(clip) in lacking}
        return work

    def _drop_halves(self, work: Work) -> None:
        """Have samples that lack a file not count."""
        for name, ends in samples_in(self.layout).items():
            if "info.json" in ends and name not in work.there:
                self.layout.info(name).unlink()

    def _share(self, ledger: Ledger, work: Work) -> None:
        """Let others in, and tell them which videos are known to fail."""
        clips, captions = set(work.missing), work.needed_captions
        groups = [not captions & set(group) for group in work.caption_groups]
        groups += [not clips & set(group) for group in work.clip_groups]
        with files.naming(self.layout.lock):
            ledger.share([*groups, False])
        old = self.manifest or {}
        if old.get("settings", {}).get("data") == self.settings["data"]:
            for name, digest in old.get("broken", {}).items():
                if self.hashes.get(name) == digest:
                    ledger.report(name, old["failed"][name])


def _shown(differences: list[str]) -> str:
    return ", ".join(differences[:4]) + (", ..." if len(differences) > 4 else "")
