"""Python and its packages: versions against this package's own requirements, and whether they work.

The requirements are read from the installed metadata, so they are written down once, in
pyproject.toml.
"""

import importlib
import importlib.util
import platform
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cosmos_hydra.config import Config
from cosmos_hydra.doctor.findings import Finding, fix, ok, reason

DISTRIBUTION = "cosmos-hydra"
TORCH_INDEX = "https://download.pytorch.org/whl"
# these have checks of their own
SINGLE = ("torch", "decord2", "diffusers", "transformers", "wandb")
SHOWN = ("hydra-core", "omegaconf", "av")
LISTED = 3  # wrong packages described; the command has all


def python(config: Config) -> Finding:
    """Find whether this Python is new enough."""
    needed = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    version = platform.python_version()
    if needed.contains(version, prereleases=True):
        return ok(version)
    return fix(
        f"{version} is not {needed}",
        "install a newer Python, then: python3 -m venv .venv && .venv/bin/pip install cosmos-hydra",
    )


def torch(config: Config) -> Finding:
    """Find whether torch is of a supported version and imports, and what it is built for."""
    problem = broken("torch", "torch")
    if problem:
        return problem
    import torch

    if torch.version.cuda:
        return ok(f"{torch.__version__}, built for CUDA {torch.version.cuda}")
    if torch.version.hip:
        return ok(f"{torch.__version__}, built for ROCm {torch.version.hip}")
    return ok(f"{torch.__version__}, built for the CPU")


def diffusers(config: Config) -> Finding:
    """Find whether diffusers has the Cosmos classes; a broken torchvision would stop it."""
    problem = version_problem("diffusers") or _broken_torchvision() or broken("diffusers")
    if problem:
        return problem
    try:
        from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel
    except (ImportError, RuntimeError) as error:
        text = f"diffusers {metadata.version('diffusers')} lacks Cosmos classes ({reason(error)})"
        return fix(text, install("diffusers", force=True))
    classes = (CosmosTransformer3DModel, AutoencoderKLCosmos)
    names = " and ".join(each.__name__ for each in classes)
    return ok(f"{metadata.version('diffusers')}, has {names}")


def transformers(config: Config) -> Finding:
    """Find whether transformers and its T5 encoder import."""
    problem = broken("transformers")
    if problem:
        return problem
    try:
        from transformers import T5EncoderModel
    except (ImportError, RuntimeError) as error:
        text = f"transformers {metadata.version('transformers')} has no T5 ({reason(error)})"
        return fix(text, install("transformers", force=True))
    return ok(f"{metadata.version('transformers')}, has {T5EncoderModel.__name__}")


def others(config: Config) -> Finding:
    """Find whether the remaining packages are installed in the versions required."""
    names = [name for name in _requirements() if name not in SINGLE]
    wrong = {name: problem.text for name in names if (problem := version_problem(name))}
    if wrong:
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        return fix("; ".join([*wrong.values()][:LISTED] + more), install(*wrong))
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
    return ok(f"{shown} and {len(names) - len(SHOWN)} more as required")


def broken(name: str, module: str | None = None) -> Finding | None:
    """Return what is wrong with a library, None if its version fits and it imports."""
    problem = version_problem(name)
    if problem:
        return problem
    try:
        importlib.import_module(module or name)
    except Exception as error:  # noqa: BLE001 (a broken library raises anything)
        text = f"{name} {metadata.version(name)} does not import ({reason(error)})"
        return fix(text, install(name, force=True))
    return None


def version_problem(name: str) -> Finding | None:
    """Return what is wrong with the version of a package, None if it fits."""
    needed = _requirements()[name].specifier
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return fix(f"{name} is not installed", install(name))
    if needed.contains(version, prereleases=True):
        return None
    return fix(f"{name} {version} is not {_bounds(needed)}", install(name))


def install(*names: str, force: bool = False) -> str:
    """Return the pip command for required versions; of torch the same build as before."""
    wanted = [f'"{name}{_bounds(_requirements()[name].specifier)}"' for name in names]
    command = ["pip install", *(["--force-reinstall"] if force else []), *wanted]
    if names == ("torch",) and (build := _build_of_torch()):
        command.append(f"--index-url {TORCH_INDEX}/{build}")
    return " ".join(command)


def install_torch(build: str) -> str:
    """Return the command that puts another build of torch in place, like cu130."""
    wanted = f'"torch{_bounds(_requirements()["torch"].specifier)}"'
    return f"pip uninstall -y torch && pip install {wanted} --index-url {TORCH_INDEX}/{build}"


def _build_of_torch() -> str | None:
    try:
        return Version(metadata.version("torch")).local
    except metadata.PackageNotFoundError:
        return None


def _broken_torchvision() -> Finding | None:
    """Return a finding if there is a torchvision that diffusers would trip over."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 (it fails in many ways beside another torch)
        text = f"torchvision does not import and breaks diffusers ({reason(error)})"
        return fix(text, "pip uninstall -y torchvision")
    return None


@cache
def _requirements() -> dict[str, Requirement]:
    """Return what this package requires, without extras, by normalised name."""
    needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    kept = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return {canonicalize_name(each.name): each for each in kept}


def _bounds(specifier: SpecifierSet) -> str:
    """Return version bounds, the lower one first."""
    return ",".join(sorted(map(str, specifier), reverse=True))
