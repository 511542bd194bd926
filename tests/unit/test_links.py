"""Links between the documents lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for part in ("docs", "config", "deploy") for path in (ROOT / part).glob("**/*.md"))]
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(text: str) -> Iterator[str]:
    """The targets of links in a document, outside of code."""
    for link in _LINK.findall(_FENCE.sub("", text)):
        if "://" not in link and not link.startswith("mailto:"):
            yield link


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(next(name for n in range(100) if (name := f"{slug}-{n}" if n else slug) not in found))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every file and heading that a document refers to is there."""
    for link in links(document.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"there is no {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text("utf-8")), f"there is no heading {link}"


def test_it_can_tell() -> None:
    """Links are found, and headings named, as they are on GitHub."""
    text = "# A `b` of C, D\n## Twice\n## Twice\n[x](there.md#a-b) ![y](z.svg) [w](https://example.org)\n```\n[n](o)\n```\n"
    assert list(links(text)) == ["there.md#a-b", "z.svg"]
    assert anchors(text) == {"a-b-of-c-d", "twice", "twice-1"}
