"""The benchmark of a training step runs through on small shapes, and sorts kernels."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from cosmos_hydra.engines.torch import state

PROGRAM = Path(__file__).parents[2] / "benchmarks/post_train_step.py"
SMALL = ("model=tiny", "model.num_layers=2", "data.frames=9", "data.height=48", "data.width=64")

ON_A_CPU = ("parallel.compile=false", "parallel.attention=auto")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    monkeypatch.setattr(state, "fill_shards", state.fill_shards)  # put back after a run


def test_the_rehearsal_writes_each_row_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "steps.jsonl"
    typed = ["ours_eager", "plain:1", "plain_cudnn", "save", "--steps", 2, "--matmul-size", 64]
    more = [part for key in (*SMALL, *ON_A_CPU) for part in ("--set", key)]
    places = ["--folder", tmp_path / "work", "--out", out]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *map(str, [*typed, *more, *places])])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    ours, plain, refused, save = map(json.loads, out.read_text().splitlines())
    assert [row["steps"] for row in (ours, plain)] == [2, 1]
    for row in (ours, plain):
        assert 0 < row["optimizer_s"] < row["step_s"]
        assert row["tflop_per_s"] * row["step_s"] == pytest.approx(row["model_tflop"])
        assert row["share_of_matmul"] > 0
    assert refused["error"].startswith("RuntimeError: ")  # no such kernel on a CPU
    assert 0 < save["save_call_s"] < save["save_s"]
    assert save["copied_gb"] == pytest.approx(save["parameters"] * 8 / 1e9, abs=0.01)
    printed = capsys.readouterr().out
    assert "| row | step_s |" in printed
    assert "\n| ours_eager | " in printed


def test_a_row_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), "theirs"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert "theirs: no such row; use some of ours, " in capsys.readouterr().err


def test_kernels_are_sorted_by_their_names() -> None:
    from kernel_times import split_of

    second = 10**9
    kernels = [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 0, 4 * second),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", 4 * second, 2 * second),
        ("triton_poi_fused__scaled_dot_product_cudnn_attention_add_0", 7 * second, second),
        ("void at::native::vectorized_elementwise_kernel<4>", 8 * second, second),
        ("ncclDevKernel_AllGather_RING_LL", 5 * second, second),  # at the same time
    ]
    split = split_of(kernels, step_s=10.0, optimizer_s=0.5)
    assert {name: part for name, part in split.items() if name != "kernels"} == {
        "communication": 1.0,
        "attention": 4.0,
        "linears": 2.0,
        "elementwise": 1.5,
        "optimizer": 0.5,
        "idle": 2.0,
    }
    assert split["kernels"][0][1] == 4.0
