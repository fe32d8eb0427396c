"""Write checkpoints while training goes on: copy to main memory (staging.py), write in a thread.

A checkpoint counts only with its manifest, which rank 0 writes last, after every rank has written
and hashed what it holds. Called by every rank; the thread has a process group of its own.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import cosmos_hydra
from cosmos_hydra import config as schema
from cosmos_hydra import files, runs
from cosmos_hydra.config import Config, ModelConfig, PeftConfig, PeftKind
from cosmos_hydra.data.clips import TRAIN
from cosmos_hydra.data.store import SampleStore
from cosmos_hydra.engines.torch import checkpoint, state
from cosmos_hydra.engines.torch.mesh import Ranks
from cosmos_hydra.engines.torch.precision import effective_precision
from cosmos_hydra.engines.torch.staging import Staging
from cosmos_hydra.errors import STORAGE, StageError, storage_errno
from cosmos_hydra.models import lora
from cosmos_hydra.reading import sealed
from cosmos_hydra.weights import diffusers
from cosmos_hydra.weights.trained import adapters_in

MAX_CAPTIONS = 64  # remembered in a checkpoint


def facts_of(
    config: Config,
    store: SampleStore,
    fps: float,
    base: dict[str, Any] | None,
    device: torch.device,
    attention: str,
) -> dict[str, Any]:
    """Return what the manifests of a run's checkpoints say of the run."""
    precision = effective_precision(config.parallel.precision, device)
    captions = dict.fromkeys(store.captions[i] for i in store.splits[TRAIN])
    return {
        "config": schema.to_dict(config),
        "data": store.content_hash,
        "tokenizer": store.manifest["tokenizer"],
        "text_encoder": store.manifest["text_encoder"],
        "captions": list(captions)[:MAX_CAPTIONS],
        "fps": fps,
        "base": base,
        "effective": {
            "device": str(device),
            "precision": precision.name,
            "attention": attention,
        },
        "versions": {"cosmos_hydra": cosmos_hydra.__version__, "torch": torch.__version__},
    }


class Saver:
    """Save one run's checkpoints, one after the other."""

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        model: ModelConfig,
        keep: int,
        fitted_tokenizer: Path | None,
        peft: PeftConfig | None = None,
    ) -> None:
        self.run, self.ranks, self.model, self.keep = run, ranks, model, keep
        self.fitted_tokenizer = fitted_tokenizer
        self.peft = peft if peft and peft.kind is not PeftKind.none else None
        self.staging = Staging(ranks.device)
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None

    def save(self, step: int, table: state.Table, facts: dict[str, Any]) -> None:
        """Begin to copy the table and to write checkpoints/step_N.

        On CUDA nothing waits for the copy but `staging.before_update`, which must come before the
        tensors change. Raises: StageError when the checkpoint before could not be written.
        """
        self.wait()
        self.writing = self.pool.submit(self._write, step, self.staging.copy(table), facts)

    def wait(self) -> None:
        """Block until the last checkpoint is on disk.

        Raises: StageError when the disk does not take it; older ones stay as they are.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the threads, and give the memory for copies back."""
        self.pool.shutdown()
        self.staging.close()

    def _write(self, step: int, table: state.Table, facts: dict[str, Any]) -> None:
        folder = runs.step_folder(self.run, step)
        try:
            with files.new_folder(folder) if self.ranks.is_first else nullcontext():
                self._write_parts(files.temporary_of(folder), step, table, facts)
        except Exception as error:
            raise _explained(folder, error) from error
        if self.ranks.is_first:
            checkpoint.prune(self.run, self.keep, step)

    def _write_parts(
        self, temporary: Path, step: int, table: state.Table, facts: dict[str, Any]
    ) -> None:
        group = self.ranks.cpu_group
        if group is not None:
            dist.barrier(group)  # the folder is there
        self.staging.wait()
        state.write(table, temporary / checkpoint.STATE, group)
        own = {
            path.relative_to(temporary).as_posix(): files.sha256_of(path)
            for path in (temporary / checkpoint.STATE).glob(f"__{self.ranks.rank}_*.distcp")
        }
        hashes = self._gathered(own)
        if not self.ranks.is_first:
            return
        diffusers.write_config(self.model, temporary / checkpoint.TRANSFORMER)
        if self.fitted_tokenizer is not None:
            shutil.copyfile(self.fitted_tokenizer, temporary / checkpoint.TOKENIZER)
        if self.peft is not None:
            adapters = adapters_in(temporary / checkpoint.STATE)
            base = facts["base"].get("path")
            lora.write_adapter(temporary / checkpoint.ADAPTER, adapters, self.peft, base)
        for path in sorted(temporary.rglob("*")):
            name = path.relative_to(temporary).as_posix()
            if path.is_file() and name not in hashes:
                hashes[name] = files.sha256_of(path)
        manifest = {
            "format_version": checkpoint.FORMAT_VERSION,
            "step": step,
            **facts,
            "files": dict(sorted(hashes.items())),
        }
        files.write_bytes(temporary / runs.MANIFEST, sealed(manifest))

    def _gathered(self, own: dict[str, str]) -> dict[str, str]:
        if self.ranks.cpu_group is None:
            return own
        parts: list[Any] = [None] * self.ranks.cpu_group.size()
        dist.all_gather_object(parts, own, group=self.ranks.cpu_group)
        return {name: digest for part in parts for name, digest in part.items()}


def _explained(folder: Path, error: Exception) -> StageError:
    number = storage_errno(error)
    reason, advice = (os.strerror(number), STORAGE[number]) if number else (error, "try again")
    return StageError(f"checkpoint {folder} cannot be written ({reason}); {advice}")
