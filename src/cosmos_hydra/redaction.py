"""Secrets stay in the environment: never in a config, and starred out of whatever is printed."""

import os
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

NAMES = re.compile(r".*(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL).*", re.I)
PATHS = re.compile(r".*(FILE|PATH|DIR)", re.I)
# tokens of the Hub, of Weights & Biases (new form) and of the common forges
TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|wandb_v1_\w{16,}|gh[pousr]_\w{20,}|glpat-[\w-]{16,})")
PASSWORDS = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # in a URL
STARS = "***"
SHORTEST = 8  # shorter values would star out words


def secrets() -> dict[str, str]:
    """Return the secrets in the environment, by the name of their variable."""
    found = {}
    for name, value in os.environ.items():
        if NAMES.fullmatch(name) and not PATHS.fullmatch(name) and len(value) >= SHORTEST:
            found[name] = value
        elif "://" in value and "@" in value and urlsplit(value).password:
            found[name] = str(urlsplit(value).password)
    return found


def redact(text: str) -> str:
    """Return a text with every known secret, and what looks like one, as stars."""
    for value in sorted(secrets().values(), key=len, reverse=True):
        text = text.replace(value, STARS)
    return PASSWORDS.sub(STARS, TOKENS.sub(STARS, text))


def leaks(overrides: Iterable[str]) -> list[str]:
    """Return a line for every override that holds a secret; its value is not shown."""
    return [
        f"{override.partition('=')[0]} holds a secret, which would be stored with the run; "
        f"give secrets as environment variables (HF_TOKEN, WANDB_API_KEY)"
        for override in overrides
        if redact(override) != override
    ]
