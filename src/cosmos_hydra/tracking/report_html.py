"""The elements of a report page; every text is escaped, and nothing is loaded from anywhere.

The content security policy allows inline styles and embedded media only, so that even a hole in
the escaping could neither run a script nor ask the network.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cosmos_hydra.data.video import UnreadableVideo, decode

EMBEDDED_MB = 40
POSTER_WIDTH = 480
KINDS = {".png": "image/png", ".mp4": "video/mp4"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
STYLE = Path(__file__).with_name("report.css")


class Html(str):
    """Markup; any other text is escaped before it becomes a part of it."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Return a value as markup: text is escaped, markup stays, None is a dash."""
    if isinstance(value, Html):
        return value
    return Html("\N{EN DASH}" if value is None else html.escape(str(value)))


def join(parts: Iterable[Any]) -> Html:
    """Return the parts one after another."""
    return Html("\n".join(escape(part) for part in parts if part != ""))


def element(tag: str, *parts: Any, **attributes: str) -> Html:
    """Return an element; `class_` is the attribute class."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    return Html(f"<{tag}{shown}>{''.join(escape(part) for part in parts)}</{tag}>")


def section(title: str, *parts: Any) -> Html:
    """Return a section that the navigation can point at."""
    return element("section", element("h2", title), *parts, id=anchor(title))


def anchor(title: str) -> str:
    """Return the id of a section."""
    return title.lower().replace(" ", "-")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> Html:
    """Return a table that scrolls inside its box; `numbers` are the columns set to the right."""

    def line(tag: str, cells: Sequence[Any]) -> Html:
        shown = [
            element(tag, cell, **({"class_": "number"} if index in numbers else {}))
            for index, cell in enumerate(cells)
        ]
        return element("tr", *shown)

    body = [line("td", cells) for cells in rows]
    content = [element("thead", line("th", head)), element("tbody", *body)]
    return element("div", element("table", *content), class_="scroll", tabindex="0")


def facts(pairs: Iterable[tuple[str, Any, str]]) -> Html:
    """Return figures under their names, each with a remark."""
    boxes = [
        element("div", element("dt", name), element("dd", value, element("small", remark)))
        for name, value, remark in pairs
    ]
    return element("dl", *boxes, class_="facts")


def plot(title: str, uri: str, reading: str) -> Html:
    """Return a plot with its title and how to read it."""
    picture = Html(f'<img src="{uri}" alt="{html.escape(title)}">')
    return element("figure", element("h3", title), picture, element("figcaption", reading))


def details(summary: str, *parts: Any) -> Html:
    """Return content that is folded away at first."""
    return element("details", element("summary", summary), *parts)


class Media:
    """Embed pictures and videos of a run until the file would become too large."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.left_bytes = EMBEDDED_MB * 1_000_000
        self.left_out: list[Path] = []

    def picture(self, path: Path, title: str) -> Html:
        """Return a contact sheet, which scrolls in its box where it would be too small."""
        uri = self._uri(path)
        if uri is None:
            return self._missing(path)
        picture = Html(f'<img src="{uri}" alt="{html.escape(title)}">')
        box = element("div", picture, class_="scroll sheet", tabindex="0")
        return element("figure", box, element("figcaption", title))

    def video(self, path: Path, title: str) -> Html:
        """Return a player above its title."""
        uri = self._uri(path)
        if uri is None:
            return self._missing(path)
        label, poster = html.escape(title), self._poster(path)
        attributes = f'controls loop muted playsinline aria-label="{label}" poster="{poster}"'
        player = Html(f'<video {attributes} src="{uri}"></video>')
        return element("figure", player, element("figcaption", title))

    def remark(self) -> Html:
        """Return what was left out, or nothing."""
        if not self.left_out:
            return Html()
        names = ", ".join(str(path.relative_to(self.run)) for path in self.left_out[:3])
        more = len(self.left_out) - 3
        names += f" and {more} more" if more > 0 else ""
        size_mb = sum(path.stat().st_size for path in self.left_out) / 1e6
        text = f"Left out to stay under {EMBEDDED_MB} MB: {names} ({size_mb:.1f} MB)."
        return element("p", text, class_="note")

    def _missing(self, path: Path) -> Html:
        return element("p", f"{path.relative_to(self.run)} is not embedded", class_="note")

    def _uri(self, path: Path) -> str | None:
        if path.stat().st_size * 4 // 3 > self.left_bytes:
            self.left_out.append(path)
            return None
        return self._embed(KINDS[path.suffix], path.read_bytes())

    def _poster(self, path: Path) -> str:
        """Return the first frame: some browsers show nothing of a video before it is played."""
        try:
            frame_HWC = decode(path, [0])[0].numpy()
        except UnreadableVideo:
            return "data:,"
        picture = Image.fromarray(frame_HWC)
        picture.thumbnail((POSTER_WIDTH, POSTER_WIDTH))
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=80)
        return self._embed("image/jpeg", file.getvalue())

    def _embed(self, kind: str, content: bytes) -> str:
        text = base64.b64encode(content).decode()
        self.left_bytes -= len(text)
        return f"data:{kind};base64,{text}"


def page(title: str, header: Html, sections: dict[str, Html]) -> str:
    """Return the document; `sections` by title, empty ones are left out."""
    shown = {name: content for name, content in sections.items() if content}
    links = [element("a", name, href=f"#{anchor(name)}") for name in shown]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">
<title>{html.escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<header>
{header}
{element("nav", *links)}
</header>
<main>
{join(shown.values())}
</main>
</body>
</html>
"""
