"""What a run began with: recorded in its checkpoints, and found again where these are adapters."""

from typing import Any

from cosmos_hydra.engines.torch.checkpoint import Checkpoint
from cosmos_hydra.errors import CosmosError, StageError
from cosmos_hydra.weights.locate import Located, locate

KEY = "model.weights.path"


def base_facts(weights: Located | None, seed: int) -> dict[str, Any]:
    """Return what a manifest says of the weights that a run begins with; None = random ones."""
    if weights is None:
        return {"seed": seed}
    facts: dict[str, Any] = {"path": str(weights.path.resolve()), "sha256": weights.digest}
    if weights.checkpoint is not None:
        facts["base"] = weights.checkpoint.manifest.get("base")
    return facts


def base_of(found: Checkpoint, elsewhere: str | None = None) -> Located | int:
    """Return the weights that a checkpoint's adapters belong to, or the seed of random ones.

    They are looked for where they were, then in `elsewhere`. Raises: StageError when they are gone
    or have changed.
    """
    match found.manifest.get("base"):
        case {"seed": int(seed)}:
            return seed
        case {"path": str(path), "sha256": str(digest)}:
            pass
        case _:
            raise StageError(
                f"checkpoint {found.folder} is damaged: its manifest does not say what its "
                f"adapters belong to"
            )
    state = "are gone"
    for place in filter(None, (path, elsewhere)):
        try:
            weights = locate(place, KEY)
            if weights.digest == digest:
                return weights
        except CosmosError:
            continue
        state = f"have changed (sha256 {weights.digest[:12]})"
    raise StageError(
        f"checkpoint {found.folder} holds adapters of the weights {path} (sha256 {digest[:12]}), "
        f"which {state}; put them back, or set {KEY} to where they lie now"
    )
