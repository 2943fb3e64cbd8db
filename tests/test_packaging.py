"""What would be published: what is in it, what it says of itself, and what it needs to run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.house import PACKAGE, PROJECT
from tests.packages import Bare, Built, build, copy_sources
from tests.test_demo import KEY_LINES
from tests.test_documentation import fenced_blocks

DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def project(source: Path) -> dict[str, Any]:
    parsed = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))
    table: dict[str, Any] = parsed["project"]
    return table


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is now; somebody may go on to write it."""
    return copy_sources(PROJECT, tmp_path_factory.mktemp("source"), 0o644)


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def bare(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    requirements = built.metadata().get_all("Requires-Dist", [])
    return Bare(tmp_path_factory.mktemp("bare"), built.wheel, requirements)


# --- the files ------------------------------------------------------------------------------------


def package_files(source: Path) -> set[str]:
    """The modules of the package and its mark of being typed; whatever else is there is stray."""
    modules = {str(path.relative_to(source)) for path in (source / PACKAGE).rglob("*.py")}
    return {*modules, f"{PACKAGE}/py.typed"}


def test_the_wheel_holds_the_package_and_nothing_else(source: Path, built: Built) -> None:
    files = built.wheel_files()
    info = f"{built.wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"
    assert set(files) == package_files(source) | {f"{info}/{name}" for name in DIST_INFO}
    assert files[f"{info}/licenses/LICENSE"] == (source / "LICENSE").read_bytes()
    for name in package_files(source):
        assert files[name] == (source / name).read_bytes()


def test_the_sdist_holds_what_the_wheel_is_made_of(source: Path, built: Built) -> None:
    beside = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert built.sdist_names() == package_files(source) | beside


def test_both_are_the_same_wherever_and_whenever_they_are_built(
    source: Path, built: Built, tmp_path: Path
) -> None:
    """The wheel was made from the sdist; this one is not."""
    other = copy_sources(source, tmp_path, 0o600)
    again = build(other, tmp_path / "dist", "--sdist", "--wheel")
    assert again.sdist.read_bytes() == built.sdist.read_bytes()
    assert again.wheel.read_bytes() == built.wheel.read_bytes()


def test_twine_would_take_both(built: Built) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict"]
    done = subprocess.run(
        [*command, built.sdist, built.wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


# --- what it says of itself -----------------------------------------------------------------------


def test_the_metadata(built: Built, project: dict[str, Any]) -> None:
    metadata = built.metadata()
    assert metadata["Name"] == "dspy-session"
    assert metadata["Version"] == project["version"]
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert sorted(metadata.get_all("Provides-Extra", [])) == sorted(
        project["optional-dependencies"]
    )
    for name in ("Home-page", "Download-URL", "Project-URL"):
        assert metadata[name] is None  # the project has no address yet
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_readme_of_an_index_has_no_dead_links(source: Path, built: Built) -> None:
    text = built.metadata().get_payload()
    readme = (source / "README.md").read_text("utf-8")
    assert isinstance(text, str)
    assert text.startswith(readme[:200])
    code = [block.code for block in fenced_blocks(text)]
    assert code == [block.code for block in fenced_blocks(readme)]
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", prose) == []
    assert re.findall(r"<(?:a|img|source)\b[^>]*>", prose) == []


# --- a bare environment ---------------------------------------------------------------------------

USED = """
import json, sys
import dspy_session
early = sorted(name for name in sys.modules if "." not in name)

import dspy
from dspy_session import Session, SessionManager, new_secret, open_store, respond, sessionify
from dspy_session.integrations.mlflow import log_session
from dspy_session.testing import ScriptedLM

dspy.configure(lm=ScriptedLM())
program = dspy.Predict("question -> answer")
session = sessionify(program)
session(question="Hi")
print(session.tree(), file=sys.stderr)

with SessionManager(program, "sqlite:///chats.db") as manager:
    manager.open("ada")(question="Hi")
with SessionManager(program, "sqlite:///chats.db") as manager:
    stored = len(manager.open("ada"))


def hint(need):
    try:
        need()
    except dspy_session.SessionError as error:
        return str(error)


hints = {
    "encryption": hint(lambda: SessionManager(program, "memory:", key=new_secret())),
    "mlflow": hint(lambda: log_session(session)),
    "postgres": hint(lambda: open_store("postgresql://ada:secret@127.0.0.1:9/chats")),
    "redis": hint(lambda: open_store("redis://:secret@127.0.0.1:9/0")),
    "signing": hint(lambda: respond([{"role": "user", "content": "Hi"}], program, secret="s" * 32)),
}
print(json.dumps({"early": early, "turns": [len(session), stored], "hints": hints}))
"""


def test_it_works_where_nothing_else_is_installed(bare: Bare, project: dict[str, Any]) -> None:
    done = bare.run("python", "-W", "error::DeprecationWarning:dspy_session", "-c", USED)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["turns"] == [1, 1]
    assert "dspy_session" in told["early"]
    assert not {"dspy", "sqlalchemy"} & set(told["early"])
    assert sorted(told["hints"]) == sorted({*project["optional-dependencies"]} - {"cli"})
    for extra, hint in told["hints"].items():
        assert f"dspy-session[{extra}]" in hint
        assert "\n" not in hint
        assert "secret" not in hint
    (bare.home / "chats.db").unlink()


def test_the_demo_needs_no_extra(bare: Bare) -> None:
    done = bare.run("dspy-session", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in KEY_LINES if line not in done.stdout] == []
    assert list(bare.home.iterdir()) == []


def test_the_other_commands_say_which_extra_they_need(bare: Bare) -> None:
    done = bare.run("dspy-session", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'pip install "dspy-session[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_importing_the_package_loads_nothing_that_it_may_not_need() -> None:
    """In the environment of the tests, where all of it could be loaded."""
    script = "import sys, dspy_session; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    heavy = {
        "dspy",
        "sqlalchemy",
        "typer",
        "mlflow",
        "rich",
        "tqdm",
        "psycopg",
        "redis",
        "pydantic",
    }
    assert not heavy & set(done.stdout.split())
