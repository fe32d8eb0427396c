"""Each cross-check: its message to the letter, and several problems at once."""

import pytest
from composing import changed, loaded

from cosmos_hydra.checks import check

AT_LEAST_1 = (
    "trainer.max_steps",
    "trainer.global_batch_size",
    "trainer.micro_batch_size",
    "trainer.validation_samples",
    "trainer.validation_sigmas",
    "trainer.preview_steps",
    "preprocess.preview_clips",
    "peft.rank",
    "data.frames",
    "data.chunks_per_video",
    "data.tokenizer_clips",
    "data.synthetic.num_videos",
    "data.synthetic.frames",
    "generate.videos_per_prompt",
    "generate.max_captions",
    "generate.steps",
    "log.every",
    "model.num_layers",
    "model.num_heads",
    "model.adaln_lora_dim",
    "model.text_tokens",
    "model.text_dim",
    "model.latent_channels",
)
AT_LEAST_0 = (
    "trainer.save_every",
    "trainer.validate_every",
    "trainer.preview_every",
    "trainer.keep",
    "trainer.max_skipped_steps",
    "parallel.recompute_except",
    "optim.warmup_steps",
)
ABOVE_0 = (
    "peft.alpha",
    "export.shard_gb",
    "optim.lr",
    "optim.eps",
    "optim.grad_clip",
    "data.fps",
    "data.synthetic.fps",
    "model.objective.sigma_data",
    "model.objective.p_std",
)
FOLDER = "set it to the folder of"
MESSAGES = {
    "optim.weight_decay=-0.5": "optim.weight_decay=-0.5 is negative; at least 0",
    "generate.guidance=-1": "generate.guidance=-1.0 is negative; at least 0",
    "data.max_overlap=1.5": "data.max_overlap=1.5 is no share; 0 to 1",
    "data.held_out=1": "data.held_out=1.0 is no share; at least 0 and below 1",
    "model.objective.text_dropout=-0.1": (
        "model.objective.text_dropout=-0.1 is no share; at least 0 and below 1"
    ),
    "optim.betas=[0.9]": ("optim.betas=[0.9] is wrong; two numbers in [0, 1), like [0.9,0.999]"),
    "optim.betas=[0.9,1.0]": (
        "optim.betas=[0.9, 1.0] is wrong; two numbers in [0, 1), like [0.9,0.999]"
    ),
    "optim.min_lr_ratio=1.5": "optim.min_lr_ratio=1.5 is no share; 0 to 1",
    "optim.warmup_steps=1000": (
        "optim.warmup_steps=1000 is not below trainer.max_steps=1000; lower it"
    ),
    "data.height=100": "data.height=100 is no multiple of 16; use 96 or 112",
    "data.width=8": "data.width=8 is no multiple of 16; use 16 or 32",
    "data.width=1936": "data.width=1936 is more than the model has positions for; at most 1920",
    "data.frames=1025": "data.frames=1025 is more than the model has positions for; at most 1017",
    "data.synthetic.height=47": (
        "data.synthetic.height=47 is too small or odd; even and at least 16"
    ),
    "data.synthetic.width=8": "data.synthetic.width=8 is too small or odd; even and at least 16",
    "model.head_dim=22": "model.head_dim=22 is too small or odd; even and at least 24",
    "model.head_dim=25": "model.head_dim=25 is too small or odd; even and at least 24",
    "model.patch_size=[1,2]": (
        "model.patch_size=[1, 2] is wrong; three numbers above 0: time, height, width"
    ),
    "model.max_size=[128,0,240]": (
        "model.max_size=[128, 0, 240] is wrong; three numbers above 0: time, height, width"
    ),
    "model.rope_scale=[]": (
        "model.rope_scale=[] is wrong; three numbers above 0: time, height, width"
    ),
    "engine.name=jax": "engine.name=jax does not exist; use torch or nemo",
    "engine.fp8=delayed": "engine.fp8=delayed is for engine=nemo; use none",
    "engine.megatron_fsdp=true": "engine.megatron_fsdp=true is for engine=nemo; use parallel=fsdp",
    "model.tokenizer.kind=cosmos": (
        f"model.tokenizer.path=null but the cosmos tokenizer needs its weights; "
        f"{FOLDER} AutoencoderKLCosmos"
    ),
    "model.text_encoder.kind=t5": (
        f"model.text_encoder.path=null but the t5 text encoder needs its weights; "
        f"{FOLDER} the T5 encoder"
    ),
}


def test_the_defaults_have_no_problem_in_any_stage() -> None:
    for stage in ("preprocess", "post_train", "generate", "pipeline"):
        assert check(changed(stage=stage)) == []
    assert check(loaded("experiment=quickstart")) == []


@pytest.mark.parametrize("key", AT_LEAST_1)
def test_a_count_of_zero_is_refused(key: str) -> None:
    assert check(changed(f"{key}=0")) == [f"{key}=0 is too small; at least 1"]


@pytest.mark.parametrize("key", AT_LEAST_0)
def test_a_negative_interval_is_refused_and_zero_is_not(key: str) -> None:
    assert check(changed(f"{key}=-1")) == [f"{key}=-1 is negative; at least 0"]
    assert check(changed(f"{key}=0")) == []


@pytest.mark.parametrize("key", ABOVE_0)
def test_a_rate_of_zero_or_no_number_is_refused(key: str) -> None:
    for value in ("0.0", "-1.0", "nan"):
        assert check(changed(f"{key}={value}")) == [
            f"{key}={value} is not positive; above 0, or null where that is allowed"
        ]


@pytest.mark.parametrize(("override", "message"), MESSAGES.items(), ids=MESSAGES)
def test_a_value_that_does_not_fit_is_refused_with_what_would(override: str, message: str) -> None:
    assert check(changed(override)) == [message]


@pytest.mark.parametrize(
    ("model", "typed", "message"),
    [
        (
            "tiny_video2world",
            "data.frames=9 model.objective.given_frames=[0,2]",
            (
                "[0, 2] leaves nothing to learn of data.frames=9, 2 latent frames; "
                "use data.frames=17 or more, or smaller numbers"
            ),
        ),
        (
            "tiny_video2world",
            "model.objective.given_frames=[]",
            "[] is wrong; numbers of latent frames, like [0,1,2]",
        ),
        (
            "7b_video2world",
            "resume.path=/w model.objective.given_frames=[-1,1]",
            "[-1, 1] is wrong; numbers of latent frames, like [0,1,2]",
        ),
        (
            "tiny",
            "model.objective.given_frames=[1]",
            "[1] but model=tiny is a Text2World model; leave it out, or use a Video2World model",
        ),
    ],
)
def test_what_a_video2world_model_is_given_leaves_something_to_learn(
    model: str, typed: str, message: str
) -> None:
    config = changed(*typed.split(), stage="post_train", model=model)
    assert check(config) == [f"model.objective.given_frames={message}"]


def test_video2world_models_are_trained_and_sampled() -> None:
    for stage in ("post_train", "generate"):
        config = changed("checkpoint=/w", "resume.path=/w", stage=stage, model="7b_video2world")
        assert check(config) == []


def test_a_released_size_is_not_trained_from_random_weights() -> None:
    message = (
        "model.weights.path=null but model=7b is not trained from scratch; "
        "run: cosmos-hydra stage=download model=7b, or set it to weights of diffusers, the "
        "original code or NeMo"
    )
    assert check(changed(stage="post_train", model="7b")) == [message]
    for key in ("model.weights.path", "resume.path"):
        assert check(changed(f"{key}=/weights", stage="post_train", model="7b")) == []
    # nothing is trained, so nothing is missing
    assert check(changed("checkpoint=/weights", stage="generate", model="7b")) == []


def test_a_pipeline_without_stages_or_within_itself_is_refused() -> None:
    assert check(changed("pipeline.stages=[]", stage="pipeline")) == [
        "pipeline.stages=[] is empty; for example [preprocess,post_train,generate]"
    ]
    assert check(changed("pipeline.stages=[preprocess,pipeline]", stage="pipeline")) == [
        "pipeline.stages holds pipeline itself; name the single stages"
    ]


def test_a_download_is_no_part_of_a_pipeline_and_needs_a_repository() -> None:
    assert check(changed("pipeline.stages=[download,preprocess]", stage="pipeline")) == [
        "pipeline.stages holds download; run stage=download before the pipeline"
    ]
    missing = ("model.tokenizer.repo=null", "model.weights.repo=null", "model.weights.path=here")
    assert check(changed(*missing, stage="download", model="7b")) == [
        (
            "model.tokenizer.repo=null, so stage=download does not know where to find it; set it "
            "to a repository of the Hugging Face Hub, or set model.tokenizer.path"
        )
    ]
    assert check(changed(stage="download")) == []


def test_two_sources_of_prompts_are_refused_where_prompts_are_used() -> None:
    both = ("generate.prompt=a", "generate.prompt_file=b")
    assert check(changed(*both, stage="generate")) == [
        "generate.prompt and generate.prompt_file are both set; choose one"
    ]
    assert check(changed(*both, stage="preprocess")) == []


def test_the_nemo_format_needs_the_text_length_of_its_reader() -> None:
    assert check(changed("data.format=nemo", "model.text_tokens=64")) == [
        (
            "data.format=nemo holds texts of 512 tokens but model.text_tokens=64; "
            "set model.text_tokens=512"
        )
    ]
    assert check(changed("data.format=nemo", "model.text_tokens=512")) == []


def test_an_empty_name_is_refused() -> None:
    assert check(loaded("name=")) == [
        "name= is empty; it is the folder of the run below paths.runs"
    ]


@pytest.mark.parametrize("name", ["..", "../one", "a/../../one", "/elsewhere/one"])
def test_a_name_outside_the_runs_is_refused(name: str) -> None:
    assert check(loaded(f"name={name}")) == [
        f"name={name} leaves paths.runs; choose a plain name, or set paths.runs"
    ]
    assert check(loaded("name=team/one..two")) == []


LAYERS = (
    "attn1.to_k, attn1.to_out.0, attn1.to_q, attn1.to_v, attn2.to_k, attn2.to_out.0, attn2.to_q, "
    "attn2.to_v, ff.net.0.proj, ff.net.2, norm1.linear_1, norm1.linear_2, norm2.linear_1, "
    "norm2.linear_2, norm3.linear_1, norm3.linear_2, norm_out.linear_1, norm_out.linear_2, "
    "patch_embed.proj, proj_out, time_embed.t_embedder.linear_1, time_embed.t_embedder.linear_2"
)


def test_adapters_are_for_layers_that_exist() -> None:
    lora = "peft.kind=lora"
    assert check(changed(lora, "peft.targets=[]")) == [
        f"peft.targets=[] is empty; use some of {LAYERS}"
    ]
    assert check(changed(lora, "peft.targets=[to_q,to_x]")) == [
        f"peft.targets=to_x names no linear layer; use some of {LAYERS}"
    ]
    assert check(changed(lora, f"peft.targets=[{LAYERS}]")) == []
    assert check(changed("peft.targets=[]")) == []


def test_an_export_needs_what_to_export_and_where_to() -> None:
    assert check(changed(stage="export")) == [
        "checkpoint=null; set it to the run, or the step of a run, to export",
        "export.path=null; set it to the folder to write",
    ]
    assert check(changed("checkpoint=a", "export.path=b", stage="export")) == []


def test_all_problems_are_reported_at_once() -> None:
    problems = check(
        loaded(
            "stage=pipeline",
            "model=7b",
            "trainer.max_steps=0",
            "optim.lr=-1",
            "data.height=100",
            "engine.name=jax",
        )
    )
    assert [problem.partition(" ")[0] for problem in problems] == [
        "trainer.max_steps=0",
        "optim.lr=-1.0",
        "data.height=100",
        "model.weights.path=null",
        "model.tokenizer.path=null",
        "model.text_encoder.path=null",
        "engine.name=jax",
    ]
