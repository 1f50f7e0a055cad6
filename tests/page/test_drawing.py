"""Every diagram of the manual is drawn, with all its words, inside its picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cipherbox.apps.page.drawing import drawn, wrapped
from cipherbox.apps.page.handbook import html_of
from cipherbox.cli.manual import manual_pages

PAGES = manual_pages()
DIAGRAMS = [
    pytest.param(source, id=f"{name}-{number}")
    for name, text in sorted(PAGES.items())
    for number, source in enumerate(re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL))
]


@pytest.mark.parametrize("source", DIAGRAMS)
def test_every_diagram_of_the_manual_is_drawn(source: str) -> None:
    picture = ET.fromstring(drawn(source))
    width, height = (float(n) for n in picture.attrib["viewBox"].split()[2:])
    for box in picture.iter("rect"):
        x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    boxes = [box.attrib for box in picture.iter("rect") if box.attrib["class"] == ""]
    corners = [(float(box["x"]), float(box["y"])) for box in boxes]
    assert len(set(corners)) == len(corners) > 1  # none on another
    shown = " ".join("".join(text.itertext()) for text in picture.iter("text"))
    said = "".join(shown.split())
    for words in re.findall(r"(?:: |\||\[\(?|-- )([^\[\]|:()]+?)(?:\)?\]|\||$| -->)", source, re.M):
        if "subgraph" not in words and not words.startswith("*"):
            assert "".join(words.split())[:12] in said, words


def test_what_is_not_understood_stays_text() -> None:
    for source in ("pie\n a: 1", "flowchart LR\n A ==> B", "sequenceDiagram\n A-)B: x"):
        assert drawn(source) == ""
        assert "<svg" not in html_of(f"```mermaid\n{source}\n```", frozenset())


def test_texts_are_escaped() -> None:
    picture = drawn("flowchart LR\n A[<script>x</script>] --> B")
    assert "<script>" not in picture
    ET.fromstring(picture)
    assert "&lt;b&gt;" in html_of("a <b> c", frozenset())
    assert wrapped("one two three", 7) == ["one two", "three"]


def test_every_page_is_html_with_links_here() -> None:
    for text in PAGES.values():
        html = html_of(text, frozenset(PAGES))
        assert "<script" not in html
        assert " style=" not in html
        assert not re.search(r'href="[a-z-]+\.md', html)
