"""The manual in the page: its Markdown as HTML, raw HTML in it shown as text."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import Response

from cipherbox.apps.page.drawing import drawn
from cipherbox.apps.page.view import View
from cipherbox.errors import NotFound

_LINK = re.compile(r'href="([a-z-]+)\.md((?:#[^"]*)?)"')
_PAGE = re.compile(r"<code>(?:cipherbox manual )?([a-z][a-z-]*)</code>")


async def index(view: View) -> Response:
    """Return the list of pages, and where a searched word occurs."""
    pages = view.helpers.manual()
    wanted = view.query.get("q", "").strip()
    found = [
        (name, title_of(text))
        for name, text in sorted(pages.items())
        if wanted.casefold() in text.casefold()
    ]
    return await view.page("manual.html", found=found, wanted=wanted)


async def one(view: View) -> Response:
    """Return one page of the manual."""
    pages, name = view.helpers.manual(), view.given("name")
    if name not in pages:
        raise NotFound("there is no such page in the manual")
    html = html_of(pages[name], frozenset(pages))
    return await view.page("manual_page.html", name=name, html=Markup(html))  # noqa: S704


def html_of(text: str, names: frozenset[str]) -> str:
    """Return a page of the manual as HTML, with its diagrams drawn and its links leading here."""
    return _linked(_markdown().render(text), names)


def title_of(text: str) -> str:
    """Return the title of a page."""
    return text.partition("\n")[0].lstrip("# ")


@functools.cache
def _markdown() -> MarkdownIt:
    found = MarkdownIt("commonmark", {"html": False}).enable("table")
    found.add_render_rule("fence", _fence)
    return found


def _fence(self: Any, tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
    """Draw a diagram; its source stands below it, for those who do not see it."""
    source = str(tokens[at].content)
    kind = str(tokens[at].info).strip()
    block = f"<pre><code>{escape(source)}</code></pre>"
    picture = drawn(source) if kind == "mermaid" else ""
    if not picture:
        return block
    return (
        f'<div class="scroll" tabindex="0">{picture}</div>'
        f"<details><summary>Source of the diagram</summary>{block}</details>"
    )


def _linked(html: str, names: frozenset[str]) -> str:
    """Lead links between pages to pages here, and a page named in a sentence to that page."""
    html = _LINK.sub(r'href="/manual/\1\2"', html)
    html = re.sub(r' style="text-align:(left|right|center)"', "", html)
    # what may be wider than the page is scrolled by keyboard, too
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    html = html.replace("</table>", "</table></div>")

    def page(match: re.Match[str]) -> str:
        named = match[1] in names
        return f'<a href="/manual/{match[1]}">{match[0]}</a>' if named else match[0]

    return _PAGE.sub(page, html)
