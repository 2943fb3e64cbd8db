"""The servers that the tests start: empty for each test, gone with whoever started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis

from tests.house import PROJECT
from tests.servers import APPEND_ONLY, PostgresServer, RedisServer
from tests.streams import SOON

STARTS_AND_WAITS = """
import sys
from tests.servers import PostgresServer, RedisServer
with PostgresServer() as one, RedisServer() as two:
    print(one.folder, two.folder, flush=True)
    sys.stdin.read()
"""


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.mark.parametrize("turn", range(2))
def test_each_test_gets_an_empty_postgresql_database(turn: int, postgres_url: str) -> None:
    with psycopg.connect(plain(postgres_url)) as connection:
        assert connection.info.server_version // 10_000 >= 14
        connection.execute("CREATE TABLE mine (a int)")


@pytest.mark.parametrize("turn", range(2))
def test_each_test_gets_an_empty_redis_database(
    turn: int, redis_url: str, cluster_url: str
) -> None:
    for url in (redis_url, cluster_url):
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
            client.set("mine", 1)


def test_a_killed_postgresql_server_comes_back_with_what_was_committed() -> None:
    with PostgresServer() as server:
        with psycopg.connect(plain(server.url)) as connection:
            connection.execute("CREATE TABLE mine (a int)")
        url = server.url
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(plain(url))
        server.start()
        with psycopg.connect(plain(url)) as connection:
            assert connection.execute("SELECT * FROM mine").fetchall() == []
    assert not server.folder.exists()


def test_a_killed_redis_server_comes_back_with_what_it_appended() -> None:
    with RedisServer(*APPEND_ONLY) as server, redis.Redis.from_url(server.url) as client:
        client.set("mine", 1)
        server.kill()
        server.start()
        assert client.get("mine") == b"1"
    assert not server.folder.exists()


def test_servers_end_with_a_process_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folders = [Path(name) for name in process.stdout.readline().split()]
        assert len(folders) == 2
        assert all(folder.exists() for folder in folders)
        process.kill()
    until = time.monotonic() + SOON
    while any(folder.exists() for folder in folders) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(folder.exists() for folder in folders)


def test_a_server_that_does_not_start_says_why() -> None:
    server = RedisServer("no-such-setting 1")
    with pytest.raises(RuntimeError, match="no-such-setting"), server:
        pass
    assert not server.folder.exists()


def test_a_server_at_a_url_from_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with RedisServer() as server:
        monkeypatch.setenv("DSPY_SESSION_TEST_REDIS", server.url)
        url = request.getfixturevalue("redis_url")
        assert url.startswith(server.url.rpartition("/")[0])
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
    assert os.environ["DSPY_SESSION_TEST_REDIS"] == server.url
