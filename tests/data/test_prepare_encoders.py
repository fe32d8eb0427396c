"""Encoders in preprocessing: called once a caption, freed at the end; masks of padded clips."""

import gc
import logging
import weakref
from pathlib import Path

import pytest
import torch
from raw_videos import numbered_frames, small_config, write_moving_video

from cosmos_hydra.data import captions
from cosmos_hydra.data import prepare as prepare_module
from cosmos_hydra.data.prepare import prepare
from cosmos_hydra.data.video import write_mp4
from cosmos_hydra.models.fast_autoencoder import Way
from cosmos_hydra.models.text import HashTextEncoder

CPU = torch.device("cpu")


def write_videos(root: Path, count: int) -> Path:
    for number in range(count):
        write_moving_video(root / "raw" / f"{number}.mp4", seed=number)
    return root / "raw"


def test_every_distinct_caption_is_encoded_once_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_videos(tmp_path, 6)
    for number in range(6):
        (raw / f"{number}.txt").write_text(["lifts", "turns", "waves"][number % 3])
    encoded = []
    encode = HashTextEncoder.encode

    def counted(self: HashTextEncoder, caption: str) -> object:
        encoded.append(caption)
        return encode(self, caption)

    monkeypatch.setattr(HashTextEncoder, "encode", counted)
    store = prepare(small_config(tmp_path), CPU)
    assert sorted(encoded) == ["lifts", "turns", "waves"]
    assert len(list((tmp_path / "samples/text").iterdir())) == 3
    for sample_id, caption in store.captions.items():
        expected = encode(HashTextEncoder(16, 1024), caption).embedding_TD
        assert torch.equal(store.load(sample_id).text_TD, expected)


def test_the_encoders_are_gone_when_preparing_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path, 2)
    made: list[weakref.ref] = []
    for module, name in ((captions, "load_text_encoder"), (prepare_module, "load_tokenizer")):
        load = getattr(module, name)

        def watched(*arguments: object, load: object = load) -> object:
            encoder = load(*arguments)
            made.append(weakref.ref(encoder))
            return encoder

        monkeypatch.setattr(module, name, watched)
    gc.disable()  # gone without waiting for the collector
    try:
        store = prepare(small_config(tmp_path), CPU)
    finally:
        gc.enable()
    assert len(store.splits["train"]) == 4
    assert len(store.splits["held_out"]) == 2
    assert [reference() for reference in made] == [None, None]


def test_a_caption_longer_than_the_token_budget_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_videos(tmp_path, 2)
    (raw / "0.txt").write_text(" ".join(f"word{number}" for number in range(17)))
    (raw / "1.txt").write_text(" ".join(f"word{number}" for number in range(15)))
    caplog.set_level(logging.WARNING)
    prepare(small_config(tmp_path), CPU)
    (warning,) = caplog.messages
    assert warning == (
        "caption fills all 16 tokens and may be cut: "
        "word0 word1 word2 word3 word4 word5 word6 word7 word8 word9 ..."
    )


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((48, 64), {"top": 0, "bottom": 6, "left": 0, "right": 8}),
        # 48x32 of 48x64 pixels is picture: columns 16 to 47, cells 2 to 5
        ((96, 64), {"top": 0, "bottom": 6, "left": 2, "right": 6}),
        # 24 of 48 rows: 12 to 35, cells 1 to 4 in part or whole
        ((32, 86), {"top": 1, "bottom": 5, "left": 0, "right": 8}),
    ],
)
def test_the_padding_mask_follows_the_picture(
    size: tuple[int, int], padding: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    frames = numbered_frames(9)[:, :1, :1].repeat(size[0], axis=1).repeat(size[1], axis=2)
    write_mp4(tmp_path / "raw" / "a.mp4", frames, 12.0)
    store = prepare(small_config(tmp_path, "data.fit=pad"), CPU)
    expected = torch.ones(1, 6, 8)
    expected[:, padding["top"] : padding["bottom"], padding["left"] : padding["right"]] = 0
    assert torch.equal(store.load(store.splits["train"][0]).padding_1HW, expected)
    store = prepare(small_config(tmp_path, f"data.path={tmp_path / 'cropped'}"), CPU)
    assert not store.load(store.splits["train"][0]).padding_1HW.any()


@pytest.mark.parametrize(
    ("asked", "clips", "device", "compiler", "is_compiled"),
    [
        (None, 100, "cuda", "/usr/bin/cc", True),
        (None, 99, "cuda", "/usr/bin/cc", False),
        (None, 100, "cuda", None, False),
        (None, 100, "cpu", "/usr/bin/cc", False),
        (True, 1, "cuda", None, True),
        (False, 1000, "cuda", "/usr/bin/cc", False),
    ],
)
def test_the_tokenizer_is_compiled_where_it_pays_or_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    clips: int,
    device: str,
    compiler: str | None,
    is_compiled: bool,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    config = small_config(Path(), f"preprocess.compile={'null' if asked is None else asked}")
    ways = prepare_module._ways(config, clips, torch.device(device))
    assert (Way.compile in ways) == is_compiled
    assert Way.patches in ways


def test_asking_to_compile_on_a_cpu_says_that_it_has_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_videos(tmp_path, 2)
    prepare(small_config(tmp_path, "preprocess.compile=true"), CPU)
    assert "preprocess.compile=true has no effect on a CPU" in caplog.text
