"""The guide as a site. In: the pages of this folder. Out: `make docs` writes build/docs, without network and warnings.

Every page reads well on the repository's own pages, too: links are relative paths, mathematics stands between dollars.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
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
html_math_renderer = "mathml"


def chinese(page: str) -> bool:
    return page.startswith("zh/") or page.endswith(".zh-CN")


def tell_language(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Browsers choose fonts and line breaks by it."""
    if chinese(page):
        context["language"] = "zh-CN"


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to pages outside this folder become downloads; what is not written yet is left out of the contents."""
    top = Path(app.srcdir).resolve()
    folder = (top / page).parent

    def outside(link: re.Match[str]) -> str:
        return link[0] if (folder / link[1]).resolve().is_relative_to(top) else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\((\.\./[\w/.-]+\.md)(?:#[^)]*)?\)", outside, source[0])
    if page.startswith(("zh/", "studies/")):
        source[0] = re.sub(r"(?ms)^```\{toctree\}.*?^```", lambda block: there(block[0], folder), source[0])


def there(block: str, folder: Path) -> str:
    """A list of contents without pages of other languages, and studies, that are not there yet."""
    lines = block.splitlines()
    kept = [line for line in lines if not re.match(r"[\w.*]", line) or any(folder.glob(f"{line}.md"))]
    return "\n".join(kept)


def inline(self: SphinxTranslator, node: nodes.Element) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(self: SphinxTranslator, node: nodes.Element) -> None:
    # every browser shows MathML by itself: no script is fetched from elsewhere
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    app.connect("source-read", prepare)
    app.connect("html-page-context", tell_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


