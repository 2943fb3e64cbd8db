"""What is published: the sdist and the wheel, built as they are; and an environment without more.

Neither needs an index: the build takes its tools from uv's cache where it can, and a bare
environment gets the packages that the wheel asks for from the one that runs the tests.
"""

from __future__ import annotations

import email.message
import email.policy
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import PACKAGE

SOURCES = (PACKAGE, "LICENSE", "README.md", "pyproject.toml", ".gitignore")

DEAD = "http://127.0.0.1:9"
"""A proxy behind which there is nothing."""


def run_uv(*arguments: str | Path) -> str:
    """Runs uv, which started the tests, and returns what it said."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv builds the packages: run the tests with `uv run pytest`"
    done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def copy_sources(source: Path, folder: Path, mode: int) -> Path:
    """Copies what is built to another place, as of now, and with these permissions."""
    for name in SOURCES:
        if (source / name).is_dir():
            compiled = shutil.ignore_patterns("__pycache__")
            shutil.copytree(
                source / name, folder / name, copy_function=shutil.copyfile, ignore=compiled
            )
        else:
            shutil.copyfile(source / name, folder / name)
    for path in folder.rglob("*.*"):
        path.chmod(mode)
    return folder


@dataclass(frozen=True)
class Built:
    """The two files that would be published."""

    sdist: Path
    wheel: Path

    def wheel_files(self) -> dict[str, bytes]:
        """What the wheel holds, by path."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def sdist_names(self) -> set[str]:
        """The files of the sdist, below its one folder."""
        with tarfile.open(self.sdist) as archive:
            names = [member.name for member in archive if member.isfile()]
        folder = self.sdist.name.removesuffix(".tar.gz")
        assert all(name.startswith(f"{folder}/") for name in names)
        return {name.removeprefix(f"{folder}/") for name in names}

    def metadata(self) -> email.message.EmailMessage:
        """What the wheel says of itself; the README is its body."""
        (path,) = (name for name in self.wheel_files() if name.endswith(".dist-info/METADATA"))
        text = self.wheel_files()[path].decode()
        return email.message_from_string(text, policy=email.policy.default)


def build(source: Path, out: Path, *only: str) -> Built:
    """Builds the sdist, and from that the wheel; with `--sdist --wheel`, both from the source."""
    run_uv("build", source, "--out-dir", out, *only)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


# --- a bare environment ---------------------------------------------------------------------------


def required(requirements: list[str], extras: frozenset[str] = frozenset()) -> Iterator[str]:
    """The distributions that these requirements come to, and theirs in turn."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(requirements, extras)]
    while todo:
        asked, extras = todo.pop()
        for requirement in map(Requirement, asked):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                continue
            name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo.append((importlib.metadata.requires(name) or [], wanted))
    return iter(sorted({name for name, _ in seen}))


class Bare:
    """An environment with the wheel, what the wheel requires, and nothing else.

    Attributes:
        folder: Where it is.
        home: An empty folder in which its programs run.
    """

    def __init__(self, folder: Path, wheel: Path, requirements: list[str]) -> None:
        self.folder, self.home = folder / "bare", folder / "empty"
        self.home.mkdir()
        run_uv("venv", "--python", sys.executable, self.folder)
        (site,) = self.folder.glob("lib/python*/site-packages")
        for name in required(requirements):
            self._lend(importlib.metadata.distribution(name), site)
        run_uv("pip", "install", "--python", self.folder, "--offline", "--no-index", wheel)

    def _lend(self, distribution: importlib.metadata.Distribution, site: Path) -> None:
        for top in {file.parts[0] for file in distribution.files or []} - {".."}:
            source = Path(str(distribution.locate_file(top)))
            if top.endswith(".dist-info"):
                shutil.copytree(source, site / top)
            elif source.exists():  # a cache need not
                (site / top).symlink_to(source)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one of its commands in the empty folder, without a network."""
        return subprocess.run(
            [self.folder / "bin" / command, *arguments],
            cwd=self.home,
            env={
                "HOME": str(self.folder),
                "LITELLM_LOCAL_MODEL_COST_MAP": "true",
                "HTTP_PROXY": DEAD,
                "HTTPS_PROXY": DEAD,
                "ALL_PROXY": DEAD,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
