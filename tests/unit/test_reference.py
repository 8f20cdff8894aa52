"""docs/reference says what the code says, and the manual pages are understood."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", PROJECT / "config/release/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load()
PAGES, MANUALS = reference.pages(), reference.manuals()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_up_to_date(name: str) -> None:
    """What `make docs` would write is what is there."""
    assert (DOCS / "reference" / name).read_text() == PAGES[name], "run: make docs"


def test_nothing_else_is_in_the_reference() -> None:
    """No page of what the code no longer has."""
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(PAGES)


@pytest.mark.parametrize("name", MANUALS)
def test_a_manual_page_is_understood(name: str) -> None:
    """The own check of groff says nothing, and what is shown begins with the name."""
    if shutil.which("groff") is None:
        pytest.skip("groff is missing")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=MANUALS[name], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
    assert name.rpartition(".")[0].upper() in done.stdout


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    """README, CHANGELOG and all pages: files that are linked exist."""
    pages = [PROJECT / "README.md", PROJECT / "SECURITY.md", *DOCS.rglob("*.md")]
    dead = [
        f"{page.relative_to(PROJECT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:{`]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert dead == []
