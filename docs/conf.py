"""The guide as a site. In: the pages of this folder. Out: `make docs` writes build/docs, without network and warnings.

Every page reads well on the repository's own pages, too: links are relative paths, mathematics stands between dollars.
"""

from __future__ import annotations

import html
import re
from pathlib import Path as File
from typing import Any

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxTranslator

project = "Unmask"
author = "the authors of Unmask"
project_copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["log.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # `page.md#a-heading`, spelt as on the repository's pages

html_theme = "furo"
html_title = "Unmask"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_permalinks_icon = "#"
html_math_renderer = "drawn"


def chinese(page: str) -> bool:
    return page.startswith("zh/") or page.endswith(".zh-CN")


def tell_language(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Browsers choose fonts and line breaks by it."""
    if chinese(page):
        context["language"] = "zh-CN"


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to pages outside this folder become downloads; what is not written yet is left out of the contents."""
    top = File(app.srcdir).resolve()
    folder = (top / page).parent

    def outside(link: re.Match[str]) -> str:
        return link[0] if (folder / link[1]).resolve().is_relative_to(top) else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\((\.\./[\w/.-]+\.md)(?:#[^)]*)?\)", outside, source[0])
    if page.startswith(("zh/", "studies/")):
        source[0] = re.sub(r"(?ms)^```\{toctree\}.*?^```", lambda block: there(block[0], folder), source[0])


def there(block: str, folder: File) -> str:
    """A list of contents without pages of other languages, and studies, that are not there yet."""
    lines = block.splitlines()
    kept = [line for line in lines if not re.match(r"[\w.*]", line) or any(folder.glob(f"{line}.md"))]
    return "\n".join(kept)


def picture(tex: str) -> str:
    """A formula as an SVG, its letters as outlines, in the colour and size of the text around it.

    A browser shows MathML well only where it finds a font for mathematics, and MathJax comes from elsewhere;
    matplotlib, which Unmask needs anyway, knows all that our formulas use.
    """
    size = 100.0
    font = FontProperties(math_fontfamily="stix", size=size)
    tex = re.sub(r"\\le(?![a-z])", r"\\leq", tex).replace("\n", " ")  # mathtext's word for it
    width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", 72, font)
    outline = TextPath((0, 0), f"${tex}$", prop=font)
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    drawn = []
    for vertices, code in outline.iter_segments(simplify=False, curves=True):
        points = [] if code == Path.CLOSEPOLY else [f"{v * (-1) ** (i % 2):.1f}" for i, v in enumerate(vertices)]
        drawn.append(letters[code] + " ".join(points))
    box = f"-1 {-height - 1:.1f} {width + 2:.1f} {height + depth + 2:.1f}"
    em = 1.12 / size  # its letters are then as high as the text's
    style = (
        f"width:{(width + 2) * em:.3f}em;height:{(height + depth + 2) * em:.3f}em;vertical-align:{-depth * em:.3f}em"
    )
    name = html.escape(tex, quote=True)
    path = f'<path fill="currentColor" d="{"".join(drawn)}"/>'
    return f'<svg class="math" role="img" aria-label="{name}" viewBox="{box}" style="{style}">{path}</svg>'


def formula(tex: str) -> str:
    """The same, but for Chinese words in it, for which matplotlib has no letters: they stay text."""
    parts = re.split(r"\\(?:text|mathrm)\{([^{}]*[^\x00-\x7f][^{}]*)\}", tex)
    return "".join(html.escape(part) if i % 2 else picture(part) for i, part in enumerate(parts) if part.strip())


def inline(self: SphinxTranslator, node: nodes.Element) -> None:
    self.body.append(formula(node.astext()))
    raise nodes.SkipNode


def display(self: SphinxTranslator, node: nodes.Element) -> None:
    shown = formula(node.astext().replace(r"\frac", r"\dfrac"))
    self.body.append(f'<div class="formula">{shown}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("drawn", (inline, None), (display, None))
    app.connect("source-read", prepare)
    app.connect("html-page-context", tell_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
