"""The documentation as the tests read it."""

import re
from pathlib import Path

from mlserve.settings.base import BASE_DIR

README = BASE_DIR / "README.md"
PAGES = [README, BASE_DIR / "CHANGELOG.md", *sorted((BASE_DIR / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^ *```(?P<info>[^\n`]*)\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def reference(name: str) -> str:
    """A page of docs/reference."""
    return (BASE_DIR / "docs" / "reference" / f"{name}.md").read_text("utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading!r}"
    return found[1]


def first_column(text: str) -> set[str]:
    """Everything in code style in the first column of the tables of `text`."""
    rows = [line.replace(r"\|", "/").split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def code_blocks(path: Path) -> list[tuple[str, str]]:
    """(info string, body) of each fenced block."""
    return [(found["info"].strip(), found["body"]) for found in _FENCE.finditer(path.read_text("utf-8"))]


def prose(path: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors that headings get on the usual hosts."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
