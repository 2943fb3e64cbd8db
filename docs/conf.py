"""How Sphinx builds these pages as a site: `uv run sphinx-build -W docs docs/_build`.

What is written in Markdown is what is read beside the code, too, so nothing in it is for Sphinx
alone. The order of the site is that of the links in `index.md`. The pages of the public names are
generated from the docstrings: one for each section of `reference/api.md`, with the names that its
tables list, and one for each module that has further names.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

project = "dspy-session"
author = "The dspy-session authors"
release = version = version_of("dspy-session")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "A conversation is a value", "page_width": "1200px"}
html_show_copyright = False
html_copy_source = False
smartquotes = False

myst_heading_anchors = 4  # links to headings are spelled as beside the code

default_role = "py:obj"  # `Turn` in a docstring is a link, and `[]` is just code
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
suppress_warnings = ["ref.python"]  # `type` in an annotation is found as an attribute, too

PACKAGE: Final = "dspy_session"
MODULES: Final = ("", ".core", ".codec", ".stores", ".testing", ".integrations.mlflow")
"""Whose names are public, below the package; a name counts for the first that has it."""

OTHERS: Final = "Module, Struct, BaseModel, Signature, LM, str, Enum, BaseException, object"
"""Classes whose members are documented by their own libraries."""

GENERATED: Final = "_generated"


def public_names() -> dict[str, str]:
    """Every public name, and the module that it is imported from."""
    homes: dict[str, str] = {}
    for module in reversed(MODULES):
        module = PACKAGE + module
        homes |= dict.fromkeys(importlib.import_module(module).__all__, module)
    return homes


def sections(page: str, homes: dict[str, str]) -> dict[str, list[str]]:
    """The public names by title: as the page has them in tables, then the rest by module."""
    found: dict[str, list[str]] = {}
    left = dict(homes)
    for section in page.split("\n## ")[1:]:
        tables = re.findall(r"^\| (?:Name|Error) \|.*\n(?:\|.*\n)+", section, re.MULTILINE)
        cells = "\n".join(row.split(" | ")[0] for row in "".join(tables).split("\n"))
        for name in re.findall(r"`(?:await )?(?:[\w.]+\.)?(\w+)", cells):
            if left.pop(name, None):
                found.setdefault(section.partition("\n")[0], []).append(name)
    for name, module in sorted(left.items()):
        found.setdefault(module, []).append(name)
    return found


def entry(name: str, module: str) -> str:
    """The directive that documents a name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        members = f"   :members:\n   :inherited-members: {OTHERS}\n"
    else:
        kind, members = "function" if inspect.isroutine(value) else "data", ""
    return f".. auto{kind}:: {module}.{name}\n{members}"


def generate(app: Sphinx) -> None:
    """Write the pages of the public names, and a copy of the README, where they are not yet so."""
    source = Path(app.srcdir)
    homes = public_names()
    readme = (source.parent / "README.md").read_text("utf-8")
    pages = {"readme.md": re.sub(r'(\]\(|src=")docs/', r"\1../", readme)}
    for title, names in sections((source / "reference/api.md").read_text("utf-8"), homes).items():
        entries = "\n".join(entry(name, homes[name]) for name in names)
        slug = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
        pages[f"api-{slug}.rst"] = f"{title}\n{'=' * len(title)}\n\n{entries}"
    (source / GENERATED).mkdir(exist_ok=True)
    for old in {path.name for path in (source / GENERATED).iterdir()} - pages.keys():
        (source / GENERATED / old).unlink()
    for name, text in pages.items():
        page = source / GENERATED / name
        if not page.exists() or page.read_text("utf-8") != text:
            page.write_text(text, "utf-8")


def add_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    """Make contents for the site of the links of the first page, and link the README's copy."""
    text = re.sub(r"\]\((?:\.\./)+README\.md", f"](/{GENERATED}/readme.md", source[0])
    if page == "index":
        for section in re.split(r"\n## ", text):
            title = section.partition("\n")[0].strip("# ")
            linked = dict.fromkeys(re.findall(r"\]\(([^)#:]+)\.md[)#]", section))
            text += contents(linked, f":caption: {title}")
    elif page == "reference/api":
        text += contents([f"{GENERATED}/api-*"], ":glob:")
    source[0] = text


def contents(pages: Any, option: str) -> str:
    """A table of contents that only the site's navigation shows."""
    listed = "\n".join(f"/{page.lstrip('/')}" for page in pages)
    return f"\n\n```{{toctree}}\n:hidden:\n{option}\n\n{listed}\n```\n" if listed else ""


def mark_code(
    _app: Sphinx, what: str, name: str, value: Any, _options: Any, lines: list[str]
) -> None:
    """Say in reStructuredText what our docstrings say with less: what is code, where it ends."""
    if what == "data":
        lines[:] = said_below(name.rpartition(".")[2], value)
    text = re.sub(r"(?<![:\s]):\n\n(?=    +[^\s:])", "::\n\n", "\n".join(lines))
    text = re.sub(r"(?<!`)(`[^`\n]+`)(?=\w)", r"\1\\ ", text)
    lines[:] = text.split("\n")


def said_below(name: str, value: Any) -> list[str]:
    """The text below the assignment of a name, in whichever module of the package that is."""
    for home, module in list(sys.modules.items()):
        if home.startswith(PACKAGE) and vars(module).get(name) is value:
            said = ModuleAnalyzer.for_module(home).find_attr_docs().get(("", name))
            if said:
                return list(said)
    return []


def link_names(_app: Sphinx, document: nodes.document) -> None:
    """Make links of the public names that a page has as code."""
    public = set(importlib.import_module(PACKAGE).__all__)
    for code in list(document.findall(nodes.literal)):
        found = re.match(r"(?:await )?(\w+)[\w.]*", code.astext())
        inside = isinstance(code.parent, nodes.title | nodes.reference | addnodes.pending_xref)
        if found and found[1] in public and not inside:
            name = f"{PACKAGE}.{found[0].removeprefix('await ')}"
            link = addnodes.pending_xref(refdomain="py", reftype="obj", reftarget=name)
            code.replace_self(link)
            link += code


def setup(app: Sphinx) -> None:
    """Hook the above in."""
    app.connect("builder-inited", generate)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("doctree-read", link_names)
