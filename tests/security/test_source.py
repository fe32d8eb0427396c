"""The source itself: nothing in it can run what a file says, and torch reads weights alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cosmos_hydra

SOURCE = Path(cosmos_hydra.__file__).parent
# modules that unpickle, or load code
FORBIDDEN_IMPORTS = {"joblib", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_IMPORTS |= {"runpy", "code", "imp", "pty", "torch.hub", "torch.package", "pandas"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input", "os.system", "os.popen"}
FORBIDDEN_CALLS |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load"}
FORBIDDEN_CALLS |= {"torch.serialization.load", "torch.storage._load_from_bytes", "np.lib.format"}
FORBIDDEN_CALLS |= {"torch.serialization.add_safe_globals", "hydra.utils.instantiate"}
FORBIDDEN_CALLS |= {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"}
FORBIDDEN_CALLS |= {"hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.call"}
# keywords that let a library run code of a file, and the only value they may have
KEYWORDS = {"trust_remote_code": False, "allow_pickle": False, "shell": False}
KEYWORDS |= {"weights_only": True, "use_safetensors": True, "local_files_only": True}


def dotted(node: ast.expr) -> str:
    """Return the name that is called, as `a.b.c`, or nothing for what has no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def keywords(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: getattr(word.value, "value", None) for word in call.keywords}


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def violations(source: str) -> Iterator[str]:
    """Yield what a source must not do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            parts = name.split(".")
            above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            if above & FORBIDDEN_IMPORTS or name in FORBIDDEN_CALLS or name == "torch.load":
                yield f"import {name}"
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                yield f"call {dotted(node.func)}"
            for word, value in keywords(node).items():
                if word in KEYWORDS and value is not KEYWORDS[word]:
                    yield f"{word}={value}"


def sources() -> dict[str, str]:
    return {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}


def test_the_source_runs_nothing_that_a_file_says() -> None:
    found = {name: list(violations(source)) for name, source in sources().items()}
    assert len(found) > 50
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_torch_load_is_called_for_weights_only() -> None:
    loads = [
        (name, keywords(call).get("weights_only"))
        for name, source in sources().items()
        for call in calls(source)
        if dotted(call.func).endswith("torch.load")
    ]
    assert loads == [("pth.py", True)]


def test_models_of_libraries_are_loaded_in_one_place_from_safetensors_on_disk() -> None:
    loads = [
        (name, keywords(call))
        for name, source in sources().items()
        for call in calls(source)
        if dotted(call.func).endswith("from_pretrained")
    ]
    ((name, words),) = loads
    assert name == "models/pretrained.py"
    assert words["use_safetensors"] is True
    assert words["local_files_only"] is True


def test_the_one_unpickler_makes_and_calls_nothing() -> None:
    users = [name for name, source in sources().items() if "import pickle" in source]
    assert sorted(users) == ["pth.py", "weights/torch_metadata.py"]
    tree = ast.parse(sources()["weights/torch_metadata.py"])
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (reader,) = [node for node in classes if "pickle._Unpickler" in map(dotted, node.bases)]
    defined = {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}
    assert "find_class" in defined
    imports = {dotted(call.func) for call in calls(sources()["weights/torch_metadata.py"])}
    assert not imports & {"getattr", "super().find_class", "importlib.import_module"}


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x', weights_only=False)",
        "from torch import load",
        "import pickle; pickle.loads(b'')",
        "from pickle import load",
        "import joblib",
        "from yaml import load",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "eval('1')",
        "import os; os.system('x')",
        "import subprocess; subprocess.run('x', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "T5EncoderModel.from_pretrained('x', use_safetensors=False)",
        "from hydra.utils import instantiate",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert len(list(violations(source))) == 1
