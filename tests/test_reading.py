"""Reading what somebody else wrote: limits, seals, and text that is fit for a message."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_hydra import reading
from cosmos_hydra.reading import (
    contained,
    open_tensors,
    plain_name,
    read_json,
    read_sealed,
    read_tensors,
    sealed,
    shown,
)

CONTENT = {"step": 4, "lr": 1e-06, "text": "é ${x}\n", "list": [1, 0.1, None, True], "files": {}}


def test_sealed_json_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(sealed(CONTENT))
    content = read_sealed(path)
    assert len(content.pop("sha256")) == 64
    assert content == CONTENT
    assert json.loads(path.read_text()).keys() == {"sha256", *CONTENT}


def test_every_changed_byte_of_sealed_json_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    whole = sealed(CONTENT)
    for place in range(len(whole)):
        for change in (0x01, 0x20, 0x2A, 0x80):
            content = bytearray(whole)
            content[place] ^= change
            path.write_bytes(content)
            try:
                found = read_sealed(path)
            except ValueError:
                continue
            # with its name changed the seal is gone, which is for the caller to miss
            assert "sha256" not in found


def test_json_without_a_seal_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_sealed(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("seal", ["", "0" * 64, 7, ["x"], {"a": 1}])
def test_a_seal_that_is_none_is_refused(seal: object, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"sha256": seal, "a": 1}))
    with pytest.raises(ValueError, match=r"^it has changed since it was written$"):
        read_sealed(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "^no JSON object$"),
        ("[" * 100_000, "^nested too deeply$"),
        ("{", "Expecting property name"),
        ('{"a": [' + "1," * 60 + "1]}", "^more than 50 values$"),
        ('{"a": "' + "x" * 2000 + '"}', "^larger than 0 MB$"),
    ],
)
def test_json_out_of_measure_is_refused(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_JSON_VALUES", 200_000 if content[0] == "[" else 50)
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 200_000 if content[0] == "[" else 1000)
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json")


def test_a_manifest_of_half_a_million_samples_is_within_the_limits() -> None:
    entry = {
        "id": "499999",
        "split": "train",
        "video": "a/longer/path/of/a/video_000123.mp4",
        "start_frame": 1000,
        "fps": 23.976023976023978,
        "caption": "the robot arm lifts a red cube, turns, and puts it into the blue box",
    }
    text = json.dumps({"samples": [entry]}, indent=2)
    assert len(text) * 500_000 < reading.MAX_JSON_BYTES
    assert sum(text.count(mark) for mark in ",[{") * 500_000 < reading.MAX_JSON_VALUES


def test_tensors_are_read_and_a_name_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, path)
    assert {name: tensor.tolist() for name, tensor in read_tensors(path).items()} == {
        "a": [1.0, 1.0],
        "b": [0.0, 0.0, 0.0],
    }
    with pytest.raises(ValueError, match=r"does not contain tensor c$"), open_tensors(path) as file:
        file.get_tensor("c")


def test_names_are_plain_or_refused(tmp_path: Path) -> None:
    assert plain_name("a b-ü.safetensors") == "a b-ü.safetensors"
    assert contained(tmp_path, "a/b.json") == tmp_path / "a/b.json"
    with pytest.raises(ValueError, match=r"^\.\./a is no plain file name$"):
        plain_name("../a")
    with pytest.raises(ValueError, match=r"^a/b is no plain file name$"):
        plain_name("a/b")
    with pytest.raises(ValueError, match=r"^a/\.\./b is no name of a file below the folder$"):
        contained(tmp_path, "a/../b")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two\nlines \x1b[31mred\u202e", "two\\nlines \\x1b[31mred\\u202e"),
        (7, "7"),
        ([2.0, 1.0], "[2.0, 1.0]"),
        (ValueError("a\nb"), "a\\nb"),
        ("x" * 200, "x" * 100 + "..."),
    ],
)
def test_foreign_text_is_shown_in_one_line_of_plain_characters(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(shown([[[[["x" * 1000] * 1000]]]])) <= 103
