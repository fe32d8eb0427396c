"""What changed between two configs or plans, in words a message can carry."""

import json
from typing import Any


def difference(old: Any, new: Any, key: str = "") -> list[str]:
    """Return `key: old -> new` for every value that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            inner = f"{key}.{name}" if key else name
            found += difference(old.get(name), new.get(name), inner)
        return found
    return [] if old == new else [f"{key}: {_typed(old)} -> {_typed(new)}"]


def _typed(value: Any) -> str:
    """Return a JSON value as one would type it: null, true."""
    return value if isinstance(value, str) else json.dumps(value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
