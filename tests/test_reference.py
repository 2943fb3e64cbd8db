"""The documentation as a site: it builds without a warning, with an entry for every public name."""

import html
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import PACKAGE, PROJECT

MODULES = tuple(
    f"{PACKAGE}{part}"
    for part in ("", ".core", ".codec", ".stores", ".testing", ".integrations.mlflow")
)
"""Whose `__all__` is public."""

Site = dict[str, str]
"""The pages of a site by their paths in it, as HTML."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """What Sphinx makes of a copy of the documentation, with every warning an error."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(PROJECT / "docs", copy / "docs", ignore=shutil.ignore_patterns("_*"))
    shutil.copy(PROJECT / "README.md", copy)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site"],
        cwd=copy,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    built = copy / "site"
    return {
        path.relative_to(built).as_posix(): path.read_text("utf-8")
        for path in built.rglob("*.html")
    }


def anchors(page: str) -> set[str]:
    """What a link can lead to within a page; its beginning is one."""
    return {"", *map(html.unescape, re.findall(r'\bid="([^"]+)"', page))}


def dead_links(site: Site) -> Iterator[str]:
    """The links within a site that lead nowhere, each with its page."""
    there = {path: anchors(page) for path, page in site.items()}
    for path, page in site.items():
        for link in set(re.findall(r'<a [^>]*\bhref="([^"]+)"', page)):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"\w+:", target) or not target.endswith((".html", "")):
                continue
            place = os.path.normpath(Path(path).parent / target) if target else path
            if place.endswith(".html") and anchor not in there.get(place, set()):
                yield f"{path}: {link}"


def shown(page: str) -> str:
    """The words of a page, one blank between them."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", page)).split())


def undocumented(site: Site, module: str) -> Iterator[str]:
    """The public names of a module that have no entry, or one without their docstring."""
    entries = {anchor: page for page in site.values() for anchor in anchors(page)}
    root = importlib.import_module(PACKAGE).__all__
    home = importlib.import_module(module)
    for name in home.__all__:
        value = getattr(home, name)
        full = f"{PACKAGE if name in root else module}.{name}"
        if full not in entries:
            yield f"{full} has no entry"
        elif inspect.isclass(value) or inspect.isroutine(value):
            said = (inspect.getdoc(value) or "").partition("\n")[0].replace("`", "")
            if " ".join(said.split()) not in shown(entries[full]):
                yield f"{full} is not said to be: {said}"


def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(site: Site) -> None:
    assert {"index.html", "reference/api.html", "_generated/readme.html"} <= site.keys()
    assert list(dead_links(site)) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry_with_its_docstring(site: Site, module: str) -> None:
    assert list(undocumented(site, module)) == []


def test_the_tables_of_the_reference_list_every_name_of_the_package(site: Site) -> None:
    """Names that no table has go to a page of their own."""
    assert f"_generated/api-{PACKAGE.replace('_', '-')}.html" not in site


def test_names_in_pages_lead_to_their_entries(site: Site) -> None:
    entry = f"_generated/api-sessions.html#{PACKAGE}.sessionify"
    assert f'href="../{entry}"' in site["reference/api.html"]
    assert f"{PACKAGE}.sessionify" in anchors(site["_generated/api-sessions.html"])


# The checks above can fail


def test_a_dead_link_is_noticed() -> None:
    site = {
        "a.html": '<a class="x" href="b/c.html#there">1</a><a href="https://d.html#x">2</a>',
        "b/c.html": '<p id="there"></p><a href="../a.html">3</a><a href="#gone">4</a>',
        "b/d.html": '<a href="e.html">5</a><a href="../a.html#gone">6</a>',
    }
    assert sorted(dead_links(site)) == [
        "b/c.html: #gone",
        "b/d.html: ../a.html#gone",
        "b/d.html: e.html",
    ]


def test_a_name_without_an_entry_or_a_docstring_is_noticed() -> None:
    module = f"{PACKAGE}.codec"
    documented = {
        name: f'<dt id="{module}.{name}">{name}</dt><dd>Return nothing.</dd>'
        for name in importlib.import_module(module).__all__
    }
    del documented["encode"]
    said = list(undocumented({"a.html": "".join(documented.values())}, module))
    assert f"{module}.encode has no entry" in said
    assert any(line.startswith(f"{module}.decode is not said to be: ") for line in said)
