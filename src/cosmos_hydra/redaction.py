"""Secrets stay in the environment: never in a config, and starred out of whatever is printed.

A value is a secret by the name of its variable. Other names that sound like one count only when the
value looks random, so that `MY_API_KEY=robot-arm` does not make a word unusable.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from urllib.parse import unquote, urlsplit

KNOWN = {
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "NGC_API_KEY", "NVIDIA_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "GITHUB_TOKEN"),
    *("GH_TOKEN", "GITLAB_TOKEN", "OPENAI_API_KEY", "SLACK_BOT_TOKEN", "KAGGLE_KEY"),
}
# whole words: TOKENIZERS_PARALLELISM and KEYBOARD are none of these
LIKELY = re.compile(
    r"(?!.*_(FILE|PATH|DIR|NAME|URL)$)"
    r".*(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL)S?(_.*)?",
    re.IGNORECASE,
)
# neither words, nor a path, nor an address
RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])(?!.*://)[^\s/~.]\S{15,}")
# tokens of the Hub, of Weights & Biases (new form) and of the common forges
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(hf_[A-Za-z0-9]{30,}|wandb_v1_\w{16,}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w-]{20,})"
)
PASSWORDS = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # in a URL
STARS = "***"
# shorter ones are placeholders, and would star out words
SHORTEST_TOKEN, SHORTEST_PASSWORD = 16, 8


def secrets() -> dict[str, str]:
    """Return the secrets in the environment, each with the name of its variable."""
    found = {}
    for name, value in os.environ.items():
        if name in KNOWN or (LIKELY.fullmatch(name) and RANDOM.fullmatch(value)):
            if len(value) >= SHORTEST_TOKEN:
                found[value] = name
        elif "://" in value and "@" in value:
            password = _password(value)
            if len(password) >= SHORTEST_PASSWORD:
                found[password] = found[unquote(password)] = name
    return found


def is_secret(name: str) -> bool:
    """Return whether a variable of the environment is to stay there, by its name or its value."""
    return name in KNOWN or name in secrets().values()


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def redact(text: str) -> str:
    """Return a text with every known secret, and what looks like one, as stars."""
    return _without(text, secrets())


def _without(text: str, known: Iterable[str]) -> str:
    for value in sorted(known, key=len, reverse=True):
        text = re.sub(re.escape(value), STARS, text, flags=re.IGNORECASE)
    return PASSWORDS.sub(STARS, TOKENS.sub(STARS, text))


def leaks(settings: Iterable[str]) -> list[str]:
    """Return a line for every `key=value` that holds a secret; its value is not shown."""
    known = secrets()
    return [
        f"{_without(setting.partition('=')[0], known)} holds {_description(setting, known)}, which "
        f"would be stored with the run; give secrets only as environment variables (HF_TOKEN, "
        f"WANDB_API_KEY)"
        for setting in settings
        if _without(setting, known) != setting
    ]


def _description(text: str, known: dict[str, str]) -> str:
    found = [name for value, name in known.items() if value.lower() in text.lower()]
    return f"the value of {found[0]}" if found else "what looks like a token or password"


class _Redacted:
    """A text stream that lets no secret through."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Star secrets out of whatever Python prints, Hydra and other packages included."""
    streams: list[Any] = [_Redacted(sys.stdout), _Redacted(sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield
