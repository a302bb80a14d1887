"""A text in Markdown as one HTML file: pictures inside, nothing fetched, raw HTML escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.reporting.pictures import Picture

if TYPE_CHECKING:
    from markdown_it.token import Token

# What a report may load, said to the browser too: nothing but what the file holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1a1a1a; --quiet: #5f6368;
  --line: #d9dce0; --soft: #f5f6f8; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ground: #0e1117; --ink: #f2f2f2;
  --quiet: #a9afb8; --line: #39404b; --soft: #181d26; --link: #7ab8f5; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 48rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.4rem; font-size: 1.3rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; } h3 { font-size: 1.05rem; }
h1, h2, h3, p, li, td { overflow-wrap: anywhere; }
li { margin: .35rem 0; } a { color: var(--link); }
code { background: var(--soft); border-radius: 3px; padding: .05rem .25rem; font-size: .92em; }
nav { background: var(--soft); border-radius: 6px; padding: .8rem 1.1rem; }
nav ul { margin: .3rem 0 0; padding-left: 1.2rem; } nav li { margin: .1rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td { overflow-wrap: normal; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
@media print { :root { --ground: #fff; --ink: #000; --quiet: #444; --line: #bbb; --soft: #fff;
  --link: #000; } main { max-width: none; padding: 0; } nav, .interactive { display: none; }
  img, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll { overflow: visible; } }
"""


def as_page(text: str, folder: Path, pictures: Mapping[str, Picture]) -> str:
    """The page of a text whose links are relative to `folder`.

    Args:
        pictures: of the text, by the path under which it names them. Others are not shown.
    """
    from markdown_it import MarkdownIt

    # `html` off: what users wrote, such as a corpus's variety names, stays text.
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    headings = _number_headings(tokens)
    for token in tokens:
        for child in token.children or ():
            _settle(child, folder, pictures)
        if token.type == "th_open":
            token.attrSet("scope", "col")
    body = reader.renderer.render(tokens, reader.options, {})
    body = body.replace(
        "<table>", '<div class="scroll" role="region" aria-label="Table" tabindex="0"><table>'
    ).replace("</table>", "</table></div>")
    top, end, rest = body.partition("</h1>")
    title = next((words for level, _, words in headings if level == "h1"), "Report")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{top}{end}\n{_contents(headings)}{rest}</main>\n</body>\n</html>\n"
    )


def _number_headings(tokens: Sequence[Token]) -> list[tuple[str, str, str]]:
    """Give every heading an anchor; (tag, anchor, words) of each."""
    found = []
    for number, (opening, inside) in enumerate(pairwise(tokens)):
        if opening.type == "heading_open":
            anchor = f"part-{number}"
            opening.attrSet("id", anchor)
            words = "".join(child.content for child in inside.children or ())
            found.append((opening.tag, anchor, words))
    return found


def _contents(headings: Sequence[tuple[str, str, str]]) -> str:
    """The second level only: figures have their headings in the text."""
    items = "".join(
        f'<li><a href="#{anchor}">{html.escape(words)}</a></li>\n'
        for tag, anchor, words in headings
        if tag == "h2"
    )
    return f'<nav aria-label="Contents"><strong>Contents</strong>\n<ul>\n{items}</ul></nav>\n'


def _settle(token: Token, folder: Path, pictures: Mapping[str, Picture]) -> None:
    """Put a picture inside the page, or lead a link to the page of another report."""
    if token.type == "link_open":
        target = str(token.attrGet("href"))
        if target.endswith("report.md") and (folder / target).with_suffix(".html").is_file():
            token.attrSet("href", target.removesuffix("md") + "html")
        if target.startswith("figures/"):
            token.attrSet("class", "interactive")
    elif token.type == "image":
        picture = pictures.get(str(token.attrGet("src")))
        if picture is None:  # one that we did not draw: nothing is loaded for it
            token.type, token.tag, token.nesting = "text", "", 0
        else:
            token.type, token.content = "html_inline", _themed(picture)


def _themed(picture: Picture) -> str:
    """The drawing that suits the reader's screen; on paper always the light one."""
    return (
        '<picture><source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="{_inside(picture.dark)}">'
        f'<img src="{_inside(picture.light)}" alt="{html.escape(picture.alt)}"></picture>'
    )


def _inside(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
