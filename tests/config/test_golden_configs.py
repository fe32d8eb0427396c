"""What `--cfg job` shows, compared with reviewed files: a changed default shows in the diff."""

from pathlib import Path

import pytest
from conftest import Command

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("model", ["tiny", "7b", "14b"])
def test_the_composed_config_is_the_reviewed_one(
    command: Command, tmp_path: Path, model: str
) -> None:
    shown = command("--cfg", "job", f"model={model}", cwd=tmp_path)
    assert (shown.code, shown.stderr) == (0, "")
    assert shown.stdout == (GOLDEN / f"{model}.yaml").read_text(), (
        f"a default has changed; if that is meant, run: "
        f"cosmos-hydra --cfg job model={model} > tests/config/golden/{model}.yaml"
    )
    assert list(tmp_path.iterdir()) == []
