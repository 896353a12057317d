"""The page of a report: html in one file, which loads nothing."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-top: 1px solid #ccc; }
h2 { padding-top: 1rem; } h3 { font-size: 1.05rem; margin-top: 1.6rem; }
h1, h2, h3, p, li, td, th, figcaption { overflow-wrap: anywhere; }
nav ul { padding-left: 1.2rem; } a { color: #0b5394; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .92rem; margin-top: .4rem; }
.scroll { overflow-x: auto; max-width: 100%; } .tall { max-height: 30rem; overflow: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { background: #f3f3f3; position: sticky; top: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
.pictures figure { margin: 0; } .pictures figcaption { font-size: .82rem; }
summary { cursor: pointer; padding: .4rem 0; }
"""


def text(value: object) -> str:
    """A text with the characters that html gives a meaning to escaped."""
    return html.escape(str(value))


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many digits after the point; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def paragraph(*sentences: str) -> str:
    """A paragraph; its text is escaped."""
    return f"<p>{text(' '.join(sentences))}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], tall: bool = False) -> str:
    """A table, the first column of which has the names of the rows.

    Args:
        columns: titles.
        rows: cells as text; they are escaped.
        tall: whether a long table scrolls.
    """
    head = "".join(f"<th>{text(c)}</th>" for c in columns)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    box = "scroll tall" if tall else "scroll"
    return f'<div class="{box}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """Content that is shown after a click."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def picture(data: bytes, caption: str, kind: str = "png") -> str:
    """A picture with its caption, which is its description for those who cannot see it too."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'


def gallery(pictures: Iterable[str]) -> str:
    """Pictures beside each other."""
    return f'<div class="pictures">{"".join(pictures)}</div>'


@dataclass(frozen=True)
class Section:
    """A part of the page: ``title``, an ``anchor`` in the table of contents, and ``content`` in html."""

    title: str
    anchor: str
    content: str


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: text.
        introduction: html before the table of contents.
        sections: the parts of the page.
    """
    contents = "".join(f'<li><a href="#{s.anchor}">{text(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.anchor}"><h2>{text(s.title)}</h2>{s.content}</section>' for s in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><h1>{text(title)}</h1>{introduction}"
        f"<nav><ul>{contents}</ul></nav>{body}</body></html>\n"
    )
