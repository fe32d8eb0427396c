"""What counts as a secret, what is starred out, and the ordinary words that must not be."""

import sys

import pytest

from cosmos_hydra.redaction import is_secret, leaks, redact, redacted_output, secrets

HUB = "hf_CanaryOfTheHubThatNobodyMaySee0123456"
ADVICE = (
    "which would be stored with the run; give secrets only as environment variables "
    "(HF_TOKEN, WANDB_API_KEY)"
)
SECRET = {
    "HF_TOKEN": "only words but known by name",
    "WANDB_API_KEY": "c0ffee" * 6 + "cafe",
    "AWS_SECRET_ACCESS_KEY": "/begins+as/A/path+0123456789abcdefghijkl",
    "MY_API_KEY": "robot-arm-0f-2024-x9",
    "PGPASSWORD": "correcthorse4battery",
    "db_password": "correcthorse4battery!",
    "SERVICE_TOKEN_V2": "abcdefgh12345678",
}
ORDINARY = {
    "TOKENIZERS_PARALLELISM": "false",
    "TOKENIZERS_CACHE": "cache4tokenizers-in-2024",
    "TOKEN_BUCKET": "s3://robots-2024/videos",
    "MAX_TOKENS": "16777216000000000",
    "KEYBOARD": "us-international-104-keys",
    "SSH_KEY_PATH": "/home/me/.ssh/id_ed25519",
    "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/credentials-2024.json",
    "MY_API_KEY": "robot-arm",
    "ADMIN_PASSWORD": "quickstart",
    "SECRET_NAME": "robots-of-the-third-floor-3",
    "TOKEN_FILE": "secrets/token-of-2024",
    "HF_TOKEN": "disabled",
    "WANDB_API_KEY": "",
    "HTTPS_PROXY": "http://proxy.example:8080",
    "ALL_PROXY": "http://user@proxy.example:8080",
    "NO_URL": "http://[user:correcthorse@",
    "HTTP_PROXY": "http://user:arm@proxy.example:8080",
}
TYPED = (
    *("name=robot-arm", "name=quickstart", "data.path=/data/wandb", "data.source=/data/s3/token"),
    *("data.path=s3://robots-2024/videos", "data.prompt=hf_model token, a secret: password=arm"),
    *("model.weights.path=/models/hf_transformers_checkpoint", "log.wandb=disabled", "seed=8080"),
    *("checkpoint=runs/6cc045a0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6", "trainer.max_steps=4096"),
    *("generate.prompt=see http://host:8080/path@v1 or me@host", "name=us-international-104-keys"),
)


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secrets().values():
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_known_by_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = SECRET[name]
    monkeypatch.setenv(name, value)
    assert secrets() == {value: name}
    assert is_secret(name)
    assert redact(f"401 for {value}!") == "401 for ***!"
    assert redact(value.upper()) == "***"
    assert leaks([f"data.prompt=a {value}"]) == [f"data.prompt holds the value of {name}, {ADVICE}"]


def test_ordinary_variables_make_no_word_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ORDINARY.items():
        monkeypatch.setenv(name, value)
    assert secrets() == {}
    assert leaks([*TYPED, *(f"name={value}" for value in ORDINARY if "@" not in value)]) == []
    assert [text for text in TYPED if redact(text) != text] == []
    assert not is_secret("MY_API_KEY")
    # its name says enough
    assert is_secret("HF_TOKEN")


@pytest.mark.parametrize(
    "token",
    [HUB, "wandb_v1_0123456789abcdef", f"ghp_{'a1' * 18}", f"glpat-{'a1' * 10}", f"run_{HUB}"],
)
def test_what_looks_like_a_token_needs_no_variable(token: str) -> None:
    assert token not in redact(f"Bearer {token}")
    assert leaks([f"name={token}"]) == [f"name holds what looks like a token or password, {ADVICE}"]


def test_a_password_is_starred_out_of_every_address() -> None:
    assert (
        redact("GET http://me:arm@host/x and ssh://a:b@c")
        == "GET http://***@host/x and ssh://***@c"
    )
    assert leaks(["data.source=http://me:arm@host"]) != []


def test_the_password_of_a_proxy_is_a_secret_as_written_and_as_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:correct%20horse@host:8080")
    assert redact("correct%20horse and correct horse") == "*** and ***"


def test_the_longer_of_two_secrets_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef-and-more")
    assert redact("0123456789abcdef-and-more") == "***"


def test_a_key_that_is_a_secret_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB)
    assert leaks([f"+{HUB}=1"]) == [f"+*** holds the value of HF_TOKEN, {ADVICE}"]


def test_whatever_is_printed_passes_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB)
    out, error = sys.stdout, sys.stderr
    with redacted_output():
        assert sys.stdout.write(f"{HUB}\n") == len(HUB) + 1
        sys.stderr.writelines([HUB, "\n"])
        assert sys.stdout.isatty() is False
    assert (sys.stdout, sys.stderr) == (out, error)
    assert capsys.readouterr() == ("***\n", "***\n")
