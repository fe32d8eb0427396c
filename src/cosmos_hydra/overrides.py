"""What the user typed: free text made safe for Hydra's grammar, and mistakes explained.

Commas, quotes and parentheses mean something in an override, so `data.prompt=a, b` would be an
error, or with `-m` two silent jobs. Values of free-text keys are therefore quoted before Hydra
sees them, and are never sweep lists.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from cosmos_hydra.config import Config, Stage
from cosmos_hydra.errors import ConfigError

TEXT_KEYS = {"data.prompt", "generate.prompt", "generate.negative_prompt"}
PATH_KEYS = {
    "checkpoint",
    "data.captions",
    "data.path",
    "data.source",
    "export.path",
    "generate.input",
    "generate.out",
    "generate.prompt_file",
    "model.text_encoder.path",
    "model.tokenizer.path",
    "model.weights.path",
    "paths.runs",
    "paths.samples",
    "resume.path",
}
# the groups of which nothing may be chosen
OPTIONAL_GROUPS = {"experiment", "sweep"}
OVERRIDE = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL)


def quote_free_text(arguments: list[str]) -> list[str]:
    """Return the arguments with the values of free-text keys in Hydra quotes.

    A value that is already in quotes, empty or `null` stays as typed. In prompts `${` is
    text; in paths it stays an interpolation.
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    match = OVERRIDE.fullmatch(argument)
    if not match or match["key"] not in TEXT_KEYS | PATH_KEYS:
        return argument
    value = match["value"]
    if value in ("", "null") or _is_quoted(value):
        return argument
    return f"{match['prefix']}{match['key']}={_in_quotes(value, match['key'] in TEXT_KEYS)}"


def _in_quotes(value: str, is_text: bool) -> str:
    if is_text:
        # OmegaConf halves the backslashes before `${` and takes the last one as the escape
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # Hydra's quoted strings: backslashes count only right before a quote
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)\Z", r"\1\1", value)
    return f"'{value}'"


def unquoted(override: str) -> str:
    """Return an override as the user typed it, where quoting that gives this override again."""
    key, _, value = override.partition("=")
    bare = f"{key}={value[1:-1]}".replace("\\'", "'")
    return bare if bare != override and _quoted(bare) == override else override


def as_typed(text: str) -> str:
    """Return what to type for a free-text key so that it gets this text."""
    return _in_quotes(text, is_text=True) if text in ("", "null") or text[0] in "'\"" else text


def _is_quoted(value: str) -> bool:
    """Return whether the first quote that no backslash escapes is the last character."""
    if value[0] not in "'\"":
        return False
    quotes = re.finditer(rf"(\\*){value[0]}", value[1:])
    ends = [match.end() for match in quotes if len(match[1]) % 2 == 0]
    return ends[:1] == [len(value) - 1]


def typed_keys(overrides: Iterable[str]) -> set[str]:
    """Return the config keys and groups that the overrides set."""
    matches = (OVERRIDE.fullmatch(override) for override in overrides)
    return {match["key"] for match in matches if match}


def refuse_null_groups(arguments: list[str]) -> None:
    """Raise ConfigError for `model=null` and the like."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if value == "null" and key in set(groups()) - OPTIONAL_GROUPS:
            raise ConfigError(f"{argument} leaves the group empty; choose one of its options")


def is_sweep(arguments: list[str]) -> bool:
    """Return whether a command line asks for the jobs of a sweep."""
    long = ("--multirun", "--multiru", "--multir", "--multi", "--mult", "--mul", "--mu")
    return any(
        argument in ("-m", *long) or argument.startswith(("sweep=", "hydra.mode="))
        for argument in arguments
    )


def as_single(arguments: list[str]) -> list[str]:
    """Return the arguments with the place of a single job, for launchers, unless it is a sweep."""
    if is_sweep(arguments):
        return arguments
    typed = [index for index, argument in enumerate(arguments) if OVERRIDE.fullmatch(argument)]
    place = typed[0] if typed else len(arguments)
    single = ["hydra.sweep.dir=${hydra.run.dir}", "hydra.sweep.subdir=."]
    return [*arguments[:place], *single, *arguments[place:]]


def refuse_several_values(arguments: list[str]) -> None:
    """Raise ConfigError for a sweep without -m, which a launcher would take for one."""
    parser = OverridesParser.create()
    for argument, quoted in zip(arguments, quote_free_text(arguments), strict=True):
        if OVERRIDE.fullmatch(quoted):
            try:
                is_several = parser.parse_override(quoted).is_sweep_override()
            except HydraException:
                continue  # Hydra says what is wrong with it
            if is_several:
                raise ConfigError(f"{argument} holds several values; add -m to run a job for each")


def explain(error: Exception, arguments: list[str]) -> ConfigError:
    """Return a composition error of Hydra or OmegaConf as one line, with the nearest valid name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MissingConfigException, OmegaConfBaseException)):
            break
        if isinstance(cause, OverrideParseException):
            break
        cause = cause.__cause__
    if isinstance(cause, MissingConfigException):
        return ConfigError(_missing_option(cause))
    if isinstance(cause, OverrideParseException):
        return ConfigError(_no_override(str(cause.override)))
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return ConfigError(_unknown_key(cause, arguments))
    if isinstance(cause, ValidationError):
        return ConfigError(_wrong_value(cause, arguments, "has the wrong type"))
    if isinstance(cause, MissingMandatoryValue):
        key = cause.full_key or "a mandatory key"
        return ConfigError(_missing_value(key))
    if isinstance(cause, InterpolationResolutionError):
        return ConfigError(_wrong_value(cause, arguments, "does not resolve"))
    ambiguous = re.search(r"Ambiguous value for argument '(.*?)'\n", str(error), re.DOTALL)
    if ambiguous:
        return ConfigError(f"{ambiguous[1]} holds several values; add -m to run a job for each")
    return ConfigError(_one_line(str(error)))


def _no_override(typed: str) -> str:
    if "=" in typed or typed.startswith("~"):
        return f"{typed} is not a valid override; quote the value: 'key=\"some text\"' in the shell"
    stages = [stage.name for stage in Stage]
    advice = f"did you mean stage={typed}?" if typed in stages else "write key=value"
    return f"{typed} has no value; {advice}"


def _missing_option(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file)
    group, _, option = missing.rpartition("/")
    options = sorted(error.options or [])
    if not options:
        return f"{missing} is not a config; the groups are {', '.join(groups())}"
    hint = _hint(option, options, 0.4)
    return f"{group}={option} does not exist; options: {', '.join(options)}{hint}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError, arguments: list[str]) -> str:
    key = error.full_key or str(error.key)
    argument = next((argument for argument in arguments if _names(argument, key)), key)
    shown = argument.lstrip("+")
    owners = [f"launch={name}" for name, keys in _launcher_keys().items() if key in keys]
    if owners:
        return f"{shown} is for {' or '.join(owners)}; leave it out, or choose that"
    known = [*groups(), *known_keys(), *sorted(set().union(*_launcher_keys().values()))]
    return f"{shown} is not a config key{_hint(shown.partition('=')[0], known)}"


def _wrong_value(error: OmegaConfBaseException, arguments: list[str], what: str) -> str:
    key = error.full_key or "config"
    shown = next((a.lstrip("+") for a in arguments if _names(a, key)), key)
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", _one_line(str(error)))
    if reason[1:2].islower():  # a word; the name of a variable stays as it is
        reason = f"{reason[0].lower()}{reason[1:]}"
    return f"{shown} {what}; {reason}"


def _missing_value(key: str) -> str:
    advice = {
        "stage": "choose stage=preprocess, post_train, generate or pipeline; "
        "or try experiment=quickstart",
    }
    return f"{key} is not set; {advice.get(key, 'give it a value')}"


def _names(argument: str, key: str) -> bool:
    match = OVERRIDE.fullmatch(argument)
    return match is not None and (match["key"] == key or match["key"].endswith(f".{key}"))


def _hint(name: str, known: list[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if not near:
        tails = {key.rpartition(".")[2]: key for key in known}
        near = [tails[n] for n in difflib.get_close_matches(name.rpartition(".")[2], tails, n=1)]
    return f"; did you mean {near[0]}?" if near else ""


def groups() -> list[str]:
    """Return the names of the config groups."""
    return sorted({file.parent.name for file in conf_folder().glob("*/*.yaml")})


def _launcher_keys() -> dict[str, set[str]]:
    """Return the keys of each launcher of ours, by its option of the group `launch`."""
    launchers = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    prefix, suffix = "cosmos_", ".yaml"
    return {
        name.removeprefix(prefix).removesuffix(suffix): {f"hydra.launcher.{k}" for k in found.node}
        for name, found in launchers.items()
        if name.startswith(prefix)
    }


def known_keys() -> list[str]:
    """Return every key of the schema in dotted form."""

    def walk(section: type, prefix: str) -> list[str]:
        found = []
        for item in fields(section):
            name = f"{prefix}{item.name}"
            found.append(name)
            if isinstance(item.type, type) and is_dataclass(item.type):
                found.extend(walk(item.type, f"{name}."))
        return found

    return walk(Config, "")


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    context = ("full_key:", "object_type=", "reference_type=")
    kept = [line for line in lines if line and not line.startswith(context)]
    return " ".join(kept)


def conf_folder() -> Path:
    """Return the folder of config groups: inside an installed wheel, or in the checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent.parent / "conf"
