"""The pages hold together: links lead somewhere, the README is short, nothing is left over."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands

from mlserve.settings.base import BASE_DIR
from tests.docs.pages import PAGES, README, anchors, code_blocks, prose

_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def _name(path: Path) -> str:
    return path.relative_to(BASE_DIR).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_internal_links_resolve(page: Path) -> None:
    """To a file of the checkout and, where they name one, to a heading in it."""
    broken = []
    for target in _LINK.findall(prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.is_file() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_index() -> None:
    """A page that nobody can find is not documentation."""
    index = BASE_DIR / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(prose(index))}
    assert sorted(_name(page) for page in PAGES if page.parent.parent == index.parent and page not in linked) == []


def test_the_readme_is_short() -> None:
    """At most 120 lines: it is a door, not the house."""
    assert len(README.read_text("utf-8").splitlines()) <= 120


def test_paths_that_the_readme_names_exist() -> None:
    """The path of a request is that of the tree."""
    (tree,) = [body for info, body in code_blocks(README) if not info]
    named = re.findall(r"\b((?:predictions|features|mlserve)/[\w/]+(?:\.py)?/?)", tree)
    assert len(named) > 8
    assert [path for path in named if not (BASE_DIR / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_code_is_what_it_claims_to_be(page: Path) -> None:
    """Blocks marked sh are read by a shell without complaint; whole JSON documents by a JSON reader."""
    for info, body in code_blocks(page):
        if info.split()[:1] == ["sh"]:
            read = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True, timeout=20)
            assert read.returncode == 0, f"{body}\n{read.stderr}"
        if info == "json" and body.lstrip().startswith("{"):
            json.loads(body)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_in_the_pages_exist(page: Path) -> None:
    """Whatever follows `manage.py` in a page is a command, with options that it has."""
    named = set(re.findall(r"manage\.py ([a-z_]+)", page.read_text("utf-8")))
    assert named - set(get_commands()) == set()
