"""Read a report as a program: its text by section, its tables, its addresses."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "wbr"}
HEADER = "header"


@dataclass
class ParsedPage(HTMLParser):
    """Text and table rows by the id of the section; fails when tags are not balanced."""

    sections: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[list[str]]] = field(default_factory=dict)
    attributes: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.section = HEADER

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.attributes.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = str(found["id"])
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if self.open[-1:] == ["td"] or self.open[-2:-1] == ["td"]:
            self.rows[self.section][-1][-1] += data

    def embedded(self, kind: str) -> list[bytes]:
        """Return what is embedded as data of a kind such as image/svg+xml."""
        sources = [found.get("src") or "" for _, found in self.attributes]
        prefix = f"data:{kind};base64,"
        return [
            base64.b64decode(source.removeprefix(prefix))
            for source in sources
            if source.startswith(prefix)
        ]

    def plots(self) -> dict[str, str]:
        """Return the plots, as SVG, by title."""
        found = {}
        for tag, attributes in self.attributes:
            prefix, _, content = str(attributes.get("src")).partition("base64,")
            if tag == "img" and "svg" in prefix:
                found[str(attributes["alt"])] = base64.b64decode(content).decode()
        return found


def parse(report: Path) -> ParsedPage:
    """Return a report after checking that every element is closed."""
    page = ParsedPage()
    page.feed(report.read_text())
    page.close()
    assert page.open == []
    return page
