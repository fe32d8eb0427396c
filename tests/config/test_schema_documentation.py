"""Every key is documented where it is declared: a comment line above each field."""

import ast
import dataclasses
from pathlib import Path

from cosmos_hydra import config as schema
from cosmos_hydra.config import Config


def sections(section: type) -> dict[str, type]:
    """Return a schema dataclass and all below it, by class name."""
    found = {section.__name__: section}
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(item.type):
            found |= sections(item.type)
    return found


def declared() -> dict[str, dict[str, int]]:
    """Return the lines of the fields of every class in the schema's source."""
    tree = ast.parse(Path(schema.__file__).read_text())
    return {
        node.name: {
            item.target.id: item.lineno
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def test_every_field_has_a_comment_line_above_it() -> None:
    lines = Path(schema.__file__).read_text().splitlines()
    places = declared()
    bare = []
    for name, section in sections(Config).items():
        for item in dataclasses.fields(section):
            # a section is documented by the fields of its class
            if dataclasses.is_dataclass(item.type):
                continue
            above = lines[places[name][item.name] - 2].strip()
            if not above.startswith("# ") or len(above) < 8:
                bare.append(f"{name}.{item.name}")
    assert bare == []


def test_the_source_declares_every_field_of_the_schema() -> None:
    places = declared()
    for name, section in sections(Config).items():
        assert set(places[name]) == {item.name for item in dataclasses.fields(section)}


def test_every_section_is_a_dataclass_that_can_be_made_without_arguments() -> None:
    for section in sections(Config).values():
        assert dataclasses.is_dataclass(section())
