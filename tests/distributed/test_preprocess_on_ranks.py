"""Ranks of one job share the clips: each makes some, none is made twice."""

import json
from pathlib import Path

from preparing_cases import note_what_is_made
from ranks import run
from small_runs import SAMPLES, small_config


def test_two_ranks_make_every_sample_once(small_samples: Path, tmp_path: Path) -> None:
    videos = f"data.source={small_samples / 'samples/synthetic-videos'}"
    config = small_config(small_samples, f"data.path={tmp_path / 'samples'}", videos)
    run(2, note_what_is_made, config, tmp_path)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    whole = json.loads((small_samples / SAMPLES / "manifest.json").read_text())
    assert first["hash"] == second["hash"] == whole["content_hash"]
    ids = {entry["id"] for entry in whole["samples"]}
    assert sorted(first["made"] + second["made"]) == sorted(ids)
    assert first["made"]
    assert second["made"]
    assert "2 ranks share them; shown is what rank 0 does" in first["messages"]
    assert f"made {len(first['made'])} of 12 samples" in first["messages"]
    assert not (tmp_path / "samples/.lock").exists()
