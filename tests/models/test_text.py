"""Text encoders: the T5 of transformers from a folder, and the hash encoder without weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import T5_DIM, WORDS, write_tiny_t5

from cosmos_hydra.config import ModelConfig, TextEncoderConfig, TextEncoderKind
from cosmos_hydra.errors import ConfigError, StageError
from cosmos_hydra.models.text import HashTextEncoder, T5TextEncoder, TextEncoder, load_text_encoder

CPU = torch.device("cpu")
TOKENS = 12
CAPTION = "the robot arm lifts a red cube"


def load(path: Path | None, text_dim: int = T5_DIM) -> TextEncoder:
    text_encoder = TextEncoderConfig(TextEncoderKind.t5, path and str(path))
    model = ModelConfig(text_tokens=TOKENS, text_dim=text_dim, text_encoder=text_encoder)
    return load_text_encoder(model, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5") / "text_encoder"
    write_tiny_t5(folder)
    return folder


def test_t5_gives_what_the_transformers_model_gives(folder: Path) -> None:
    from transformers import T5EncoderModel

    embedding = load(folder).encode(CAPTION)
    ids = [WORDS.index(word) for word in (*CAPTION.split(), "</s>")]
    with torch.no_grad():
        hidden_BTD = T5EncoderModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state
    assert embedding.embedding_TD.shape == (TOKENS, T5_DIM)
    assert embedding.embedding_TD.dtype == torch.bfloat16
    # padding behind the caption is masked, so it changes nothing but rounding
    expected_TD = hidden_BTD[0]
    assert torch.allclose(embedding.embedding_TD[: len(ids)].float(), expected_TD, atol=0.02)
    assert expected_TD.abs().mean() > 0.3


def test_captions_encoded_together_are_what_each_is_by_itself(folder: Path) -> None:
    encoder = load(folder)
    assert isinstance(encoder, T5TextEncoder)
    captions = ["", "robot", CAPTION, "a unicorn", "slowly", f"{CAPTION} {CAPTION}"]
    alone = {caption: encoder.encode(caption) for caption in captions}
    for caption, embedding in encoder.encode_all(captions):
        assert torch.equal(embedding.embedding_TD, alone[caption].embedding_TD)
    shapes = []
    encoder.encoder.register_forward_pre_hook(
        lambda module, args, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    encoder.at_once, encoder.padded_to = 3, 4  # as on a GPU, but smaller
    together = dict(encoder.encode_all(captions))
    assert shapes == [(3, 4), (3, 12)]  # shortest first; no longer than the longest needs
    assert set(together) == set(captions)
    for caption, embedding in together.items():
        assert torch.equal(embedding.mask_T, alone[caption].mask_T)
        torch.testing.assert_close(
            embedding.embedding_TD, alone[caption].embedding_TD, rtol=2**-7, atol=1e-3
        )


def test_rows_past_the_caption_are_zero_and_the_mask_has_its_length(folder: Path) -> None:
    encoder = load(folder)
    for caption, length in (("", 1), ("robot", 2), (CAPTION, 8), ("a unicorn", 3)):
        embedding = encoder.encode(caption)
        assert embedding.mask_T.tolist() == [True] * length + [False] * (TOKENS - length)
        assert not embedding.embedding_TD[length:].any()
        assert embedding.embedding_TD[:length].any(dim=1).all()


def test_a_long_caption_is_cut_at_the_token_budget(folder: Path) -> None:
    embedding = load(folder).encode(f"{CAPTION} {CAPTION}")
    assert embedding.mask_T.all()
    assert embedding.embedding_TD.shape == (TOKENS, T5_DIM)


def test_token_ids_are_those_of_transformers_for_either_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer.json and the sentencepiece model it is made from give the same ids."""
    from sentencepiece import SentencePieceTrainer
    from transformers import T5Tokenizer

    for name in ("spiece", "json"):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "tokenizer.json").unlink()
        (tmp_path / name / "tokenizer_config.json").unlink()
    sentences = [f"{CAPTION}, {word}. {CAPTION[:number]}" for number, word in enumerate(WORDS * 4)]
    (tmp_path / "corpus.txt").write_text("\n".join(sentences))
    SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "spiece" / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
    )
    capfd.readouterr()  # the trainer is talkative
    theirs = T5Tokenizer.from_pretrained(tmp_path / "spiece")
    theirs.save_pretrained(tmp_path / "json")
    one, other = (load(tmp_path / name) for name in ("spiece", "json"))
    for caption in ("", CAPTION, "a  robot,\tlifts (5 kg)\n", "Ünïcode “x”", CAPTION * 3):
        expected = theirs(caption, max_length=TOKENS, truncation=True).input_ids
        assert one.tokenize(caption) == expected
        assert other.tokenize(caption) == expected


def test_a_tokenizer_of_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t5"
    shutil.copytree(folder, path)
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"robot": 4', '"robot": 4000'))
    with pytest.raises(StageError, match=r"holds the tokenizer of another encoder than .*/t5;"):
        load(path).encode("a robot")


def test_weights_that_are_not_there_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t5"
    shutil.copytree(folder, path)
    state = load_file(path / "model.safetensors")
    del state["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError) as caught:
        load(path).encode("a robot")
    assert str(caught.value) == (
        f"model.text_encoder.path={path} lacks 1 weights of T5EncoderModel, "
        f"encoder.block.1.layer.0.SelfAttention.q.weight among them; get the folder again"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("vocab_size", "x"), ("num_layers", None), ("layer_norm_epsilon", [1])]
)
def test_a_config_that_makes_no_sense_is_one_line(
    name: str, value: object, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t5"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(StageError, match=rf"/t5: config\.json has no sensible {name}$"):
        load(path).encode("a robot")


def test_the_tokenizer_may_lie_beside_the_encoder_as_diffusers_saves_it(
    folder: Path, tmp_path: Path
) -> None:
    write_tiny_t5(tmp_path / "text_encoder", tmp_path / "tokenizer")
    one, other = load(folder).encode(CAPTION), load(tmp_path / "text_encoder").encode(CAPTION)
    assert torch.equal(one.embedding_TD, other.embedding_TD)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Transformers would make up a tokenizer that turns every word into `unknown`."""
    path = tmp_path / "text_encoder"
    write_tiny_t5(path, tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"model.text_encoder.path={path} holds no tokenizer (tokenizer.json or spiece.model), "
        f"nor does {tmp_path / 'tokenizer'}; put the files of the T5 tokenizer into one of them"
    )


def test_a_folder_without_the_encoder_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None)
    assert str(caught.value) == (
        "model.text_encoder.path=null; set it to the folder of the T5 encoder"
    )
    for missing in ("config.json", "*.safetensors"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "t5")
        assert str(caught.value) == (
            f"model.text_encoder.path={tmp_path / 't5'} holds no {missing}; "
            f"it should be a folder of a T5 encoder in transformers layout"
        )
        (tmp_path / "t5").mkdir(exist_ok=True)
        shutil.copy(folder / "config.json", tmp_path / "t5")


def test_an_encoder_of_another_width_than_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, text_dim=1024)
    assert str(caught.value) == (
        f"model.text_encoder.path={folder} gives 32 channels but model.text_dim=1024; "
        f"choose an encoder that fits the model"
    )


def test_t5_is_frozen_and_its_identity_follows_folder_and_budget(folder: Path) -> None:
    encoder = load(folder)
    assert not any(parameter.requires_grad for parameter in encoder.encoder.parameters())
    assert encoder.identity == load(folder).identity
    assert (encoder.identity["kind"], encoder.identity["num_tokens"]) == ("t5", TOKENS)


def test_hash_embeddings_are_the_same_numbers_on_every_machine() -> None:
    """A change here would make every trained toy model deaf to its captions."""
    embedding = HashTextEncoder(64, 1024).encode("A robot arm, waving.")
    assert embedding.embedding_TD.shape == (64, 1024)
    assert embedding.embedding_TD.dtype == torch.bfloat16
    assert embedding.embedding_TD[:5, :3].tolist() == [
        [0.1298828125, 1.0234375, 2.53125],
        [-0.06103515625, 0.08544921875, -0.4375],
        [0.09521484375, -1.734375, -1.6875],
        [0.388671875, 0.2080078125, -0.04296875],
        [0.0, 0.0, 0.0],
    ]
    assert embedding.embedding_TD[1, 1021:].tolist() == [-1.4296875, -1.2578125, -0.466796875]


def test_a_word_has_the_same_row_wherever_it_stands() -> None:
    encoder = HashTextEncoder(8, 1024)
    one, other = encoder.encode("Robot lifts robot"), encoder.encode("a robot")
    assert torch.equal(one.embedding_TD[0], one.embedding_TD[2])
    assert torch.equal(one.embedding_TD[0], other.embedding_TD[1])
    assert one.mask_T.tolist() == [True] * 3 + [False] * 5
    assert not one.embedding_TD[3:].any()


def test_different_captions_differ() -> None:
    encoder = HashTextEncoder(16, 1024)
    captions = ["", "waves", "turns", "waves turns", "turns waves", "waves waves"]
    embeddings = [encoder.encode(caption).embedding_TD.flatten() for caption in captions]
    for index, one in enumerate(embeddings):
        for other in embeddings[index + 1 :]:
            assert not torch.equal(one, other)
    rows = HashTextEncoder(300, 1024).encode(" ".join(f"word{n}" for n in range(300))).embedding_TD
    cosine = torch.nn.functional.normalize(rows.float(), dim=1)
    similarity = (cosine @ cosine.T).fill_diagonal_(0)
    assert similarity.abs().max() < 0.2
    assert rows.float().std() == pytest.approx(1, abs=0.01)


def test_the_default_encoder_of_the_toy_needs_no_folder() -> None:
    text_encoder = TextEncoderConfig(TextEncoderKind.hash)
    encoder = load_text_encoder(ModelConfig(text_tokens=7, text_encoder=text_encoder), CPU)
    assert encoder.identity == {"kind": "hash", "num_tokens": 7, "dim": 1024}
