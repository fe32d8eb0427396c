"""Accounts: the token of the Hugging Face Hub and the key of Weights & Biases.

Neither is ever shown, nor any value of the environment, and errors only by their kind.
"""

from concurrent.futures import Future
from importlib import metadata
from threading import Thread

from cosmos_hydra.config import Config, TokenizerKind, WandbMode
from cosmos_hydra.doctor.findings import Finding, fix, ok, warn
from cosmos_hydra.doctor.packages import broken
from cosmos_hydra.hub.cache import find
from cosmos_hydra.hub.sources import model_parts
from cosmos_hydra.tracking.wandb import has_wandb_key, wandb_host

HUB_TIMEOUT_S = 6.0


def hub(config: Config) -> Finding:
    """Find whether there is a token for the Hub and whether the Hub takes it."""
    from huggingface_hub import constants, get_token

    from cosmos_hydra.hub.client import new_login

    token = get_token()
    if token is None and config.model.tokenizer.kind is TokenizerKind.toy:
        return ok(f"none, and model={config.model.name} needs none")
    if token is None:
        return warn("none, gated models cannot be downloaded", "hf auth login")
    if constants.HF_HUB_OFFLINE:
        return ok("present, not tried: HF_HUB_OFFLINE is set")
    try:
        status = _whoami(constants.ENDPOINT, token)
    except Exception as error:  # noqa: BLE001 (the HTTP client differs between versions)
        text = f"present, not tried: the Hub does not answer ({type(error).__name__})"
        return warn(text, "export HF_HUB_OFFLINE=1 to work offline, or look at network and proxy")
    if status in (401, 403):
        return fix(f"the Hub refuses it (HTTP {status})", new_login())
    if status != 200:
        text = f"present, not tried: the Hub answers HTTP {status}"
        return warn(text, "cosmos-hydra stage=doctor in a few minutes")
    return ok("accepted by the Hub")


def weights(config: Config) -> Finding:
    """Find whether what the model needs of the Hub was downloaded."""
    model = config.model
    parts = model_parts(model).values()
    missing = [part.name for part in parts if find(part) is None]
    if missing:
        advice = f"cosmos-hydra stage=download model={model.name}"
        return warn(f"not downloaded: {', '.join(missing)}", advice)
    return ok("downloaded" if parts else f"nothing to download for model={model.name}")


def _whoami(endpoint: str, token: str) -> int:
    """Return the HTTP status of the Hub's answer, with a deadline for all of it, name look-up too.

    Raises: whatever the HTTP client does; TimeoutError.
    """
    from huggingface_hub.utils import build_hf_headers, get_session

    answer: Future[int] = Future()

    def ask() -> None:
        try:
            headers = build_hf_headers(token=token)
            reply = get_session().get(f"{endpoint}/api/whoami-v2", headers=headers)
            answer.set_result(reply.status_code)
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return answer.result(HUB_TIMEOUT_S)


def wandb(config: Config) -> Finding:
    """Find whether wandb works and has a key for its server; a fault only if it is to be used."""
    worse = fix if config.log.wandb is WandbMode.online else warn
    problem = broken("wandb")
    if problem:
        return worse(problem.text, problem.advice)
    version = metadata.version("wandb")
    if has_wandb_key(wandb_host()):
        return ok(f"{version}, has a key")
    if config.log.wandb is WandbMode.online:
        return fix(f"{version}, has no key for log.wandb=online", "wandb login")
    return ok(f"{version}, has no key, log.wandb={config.log.wandb} needs none")
