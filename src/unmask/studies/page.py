"""A report written once and read in two ways: Markdown for a repository's pages, HTML in one file.

In:  blocks (headings, paragraphs, tables, pictures) whose text may hold `code`, **bold** and [links](address).
Out: Markdown with links to the pictures; HTML with the pictures and the style inside, without scripts, in light and
dark, whose tables scroll where the screen is narrow.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.replay_page import hash_of


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    """words: how many columns on the left are words; the others are numbers and stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """file: relative to the report. alt: what it shows, for those who cannot see it."""

    file: str
    alt: str
    caption: str


Block = Heading | Text | Bullets | Code | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """The report as GitHub and most other viewers read it."""
    return "\n\n".join(as_markdown(block) for block in blocks) + "\n"


def as_markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {plain(text)}"
        case Text(text):
            return plain(text)
        case Bullets(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Code(text):
            return f"```bash\n{text}\n```"
        case Table(header, rows, words):
            sides = [" --- " if i < words else " ---: " for i in range(len(header))]
            lines = [
                "|".join(f" {plain(cell).replace('|', chr(92) + '|')} " for cell in row) for row in (header, *rows)
            ]
            return "\n".join(f"|{line}|" for line in (lines[0], "|".join(sides), *lines[1:]))
        case Picture(file, alt, caption):
            return f"![{plain(alt)}]({file})\n\n*{plain(caption)}*"


CODE = re.compile(r"(`[^`]+`)")


def plain(text: str) -> str:
    """On one line; nothing in it is taken for HTML, nor a lone star (R_D*) for emphasis."""
    parts = CODE.split(" ".join(text.split()))
    lone = re.compile(r"(?<![*\\])\*(?!\*)")
    return "".join(p if CODE.fullmatch(p) else lone.sub(r"\*", p).replace("<", "&lt;") for p in parts)


def inline(text: str) -> str:
    """The same marks as HTML."""
    found = []
    for part in CODE.split(html.escape(" ".join(text.split()))):
        if CODE.fullmatch(part):
            found.append(f"<code>{part[1:-1]}</code>")
            continue
        part = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
        found.append(re.sub(r"\[([^\]]+)\]\((https://[^)\s&\"]+)\)", r'<a href="\2">\1</a>', part))
    return "".join(found)


def as_html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{inline(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Table(header, rows, words):
            kind = ["" if i < words else ' class="n"' for i in range(len(header))]
            head = "".join(f"<th scope=col{k}>{inline(cell)}</th>" for k, cell in zip(kind, header, strict=True))
            body = "".join(f"<tr>{''.join(map(table_cell, row, kind))}</tr>" for row in rows)
            shown = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            return f'<div class="wide" tabindex="0" role="region" aria-label="table">{shown}</div>'
        case Picture(file, alt, caption):
            data = base64.b64encode((folder / file).read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'
            return f"<figure>{image}<figcaption>{inline(caption)}</figcaption></figure>"


def table_cell(text: str, kind: str) -> str:
    word = text.strip("*")
    shown = f'<span class="grade {word}">{word}</span>' if word in ("yes", "no", "undecided") else inline(text)
    return f"<td{kind}>{shown}</td>"


def page(blocks: Sequence[Block], title: str, folder: Path) -> str:
    """One file that loads nothing; folder: where the pictures lie."""
    body = "\n".join(as_html(block, folder) for block in blocks)
    policy = f"default-src 'none'; img-src data:; style-src {hash_of(STYLE)}; base-uri 'none'; form-action 'none'"
    return HEAD.format(policy=policy, title=html.escape(title), style=STYLE) + body + "\n</main>\n</body>\n</html>\n"


HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2126;--soft:#5b6570;--line:#d9dfe5;--panel:#f5f7f9;--link:#005a9c;
--yes:#0a5c36;--yes-paper:#d5efdf;--no:#8a2a0b;--no-paper:#fbdfd3;--open:#4a4f57;--open-paper:#e6e9ed}
@media(prefers-color-scheme:dark){:root{--paper:#101418;--ink:#e5e9ed;--soft:#9aa5b1;--line:#2c343c;--panel:#181e24;
--link:#7cc0ff;--yes:#9fe5bd;--yes-paper:#123c28;--no:#ffb599;--no-paper:#4a2113;--open:#c6ccd4;--open-paper:#2b323a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:break-word;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.4rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:.4rem 0 1rem}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.5rem 0 .4rem}
p,ul{max-width:44rem}li{margin:.25rem 0}ul{padding-left:1.3rem}a{color:var(--link)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--panel);padding:.08em .3em;
border-radius:4px;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
pre code{padding:0;background:none}
.wide{overflow-x:auto;margin:.8rem 0;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{background:var(--panel);font-weight:600;white-space:nowrap}tbody tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}td:first-child{white-space:nowrap}
.grade{display:inline-block;padding:.02rem .55rem;border-radius:1rem;font-weight:650;background:var(--open-paper);
color:var(--open)}
.yes{background:var(--yes-paper);color:var(--yes)}.no{background:var(--no-paper);color:var(--no)}
figure{margin:1.1rem 0}
img{display:block;width:100%;max-width:44rem;height:auto;background:#fff;border:1px solid var(--line);border-radius:8px}
figcaption{max-width:44rem;margin-top:.4rem;font-size:.88rem;color:var(--soft)}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
@media(max-width:560px){main{padding:.8rem .85rem 3rem}h1{font-size:1.4rem}table{font-size:.84rem}
th,td{padding:.38rem .5rem}}
"""
