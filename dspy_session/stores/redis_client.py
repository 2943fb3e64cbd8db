"""How a Redis server is asked, and what its errors mean.

No message shows a password. What redis-py says is the cause of each error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dspy_session.errors import OptionError, StoreError
from dspy_session.stores.redis_scripts import Script

if TYPE_CHECKING:
    import redis
    from redis.cluster import RedisCluster

__all__ = ["RedisClient"]

_MEANINGS: Final = {  # by what is in redis-py's error and its name; the first that fits counts
    "READONLY|ReadOnly": "it is a read-only replica, and nothing was written: give the URL of the "
    "primary",
    "OOM |OutOfMemory": "its memory is full, and nothing was written: raise maxmemory, or delete "
    "sessions",
    "MISCONF": "it cannot save to its disk, so it takes no writes: make room there",
    "NOREPLICAS": "too few of its replicas are there, so it takes no writes: try again later",
    "NOAUTH|Authentication required|HELLO must be called": "it wants a password: put it into the "
    "URL",
    "AUTH <password> called without": "it has no password: leave it out of the URL",
    "WRONGPASS|Authentication|invalid password": "it does not let this user in: check user and "
    "password",
    "NOPERM|NoPermission": "this user may not do that: allow it the store's commands and keys",
    "WRONGTYPE": "keys under this prefix are somebody else's: choose another prefix",
    "MOVED|Moved": "it is one node of a cluster: give a redis.cluster.RedisCluster client",
    "CLUSTERDOWN|ClusterDown|SlotNotCovered": "the cluster is down: try again later",
    "LOADING|BusyLoading": "it is still reading its data: try again later",
    "BUSY ": "it is busy with somebody's script: try again later",
    "unknown command|Unknown Redis command": "it lacks a command: it must be Redis 6.2 or newer, "
    "or a server like it",
}
_LOST: Final = (
    "it cannot be reached, or the connection was lost; what was asked is not acknowledged: check "
    "that it runs, and try again"
)


class RedisClient:
    """Runs commands and scripts.

    Args:
        url_or_client: The URL of a server, or a client of redis-py.
        timeout: For how many seconds to wait for an answer; a client of one's own has its own.

    Raises:
        OptionError: It is none of them.
        StoreError: redis-py is not installed.
    """

    def __init__(self, url_or_client: str | redis.Redis | RedisCluster, timeout: float) -> None:
        try:
            import redis  # noqa: PLC0415  # an extra: only who uses such a store needs it
            import redis.cluster  # noqa: PLC0415  # as above
            import redis.retry  # noqa: PLC0415  # as above
        except ImportError as error:
            raise StoreError(
                'a Redis store needs redis-py: pip install "dspy-session[redis]"'
            ) from error
        self._redis = redis
        self._errors = (
            redis.RedisError,
            redis.exceptions.RedisClusterException,  # no RedisError in some versions
            OSError,
        )
        self.refusal: Final[type[Exception]] = redis.exceptions.ResponseError
        """What is raised if a server refuses a command."""
        self._own = isinstance(url_or_client, str)
        self._closed = False
        client: Any = url_or_client
        if isinstance(url_or_client, str):
            client = self._connect(url_or_client, timeout)
        elif not isinstance(url_or_client, redis.Redis | redis.cluster.RedisCluster):
            raise OptionError(
                "expected the URL of a Redis server or a client of redis-py (not an asyncio one), "
                f"not {type(url_or_client).__name__}"
            )
        if client.get_encoder().decode_responses:
            raise OptionError(
                "this client decodes what it gets, and stored bytes are no text: "
                "make it with decode_responses=False"
            )
        self._client = client
        self.clustered = isinstance(client, redis.cluster.RedisCluster)
        """Whether keys of different slots must be asked for one after the other."""

    def __repr__(self) -> str:
        return repr(self._shown())

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Turn what goes wrong within into a `StoreError`."""
        if self._closed:
            raise StoreError("the store is closed; open another one")
        try:
            yield
        except self._errors as error:
            raise StoreError(f"{self._shown()}: {self._meaning(error)}") from error
        except UnicodeError as error:
            raise StoreError(
                "a text cannot be written as UTF-8, such as half a surrogate pair; nothing was "
                "written"
            ) from error

    def run(self, *command: Any) -> Any:
        """Run one command and return what the server says."""
        return self._client.execute_command(*command)

    def run_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Run commands in as few round trips as can be and return what the server says to each."""
        found: list[Any] = []
        for start in range(0, len(commands), 1_000):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands[start : start + 1_000]:
                pipeline.execute_command(*command)
            found += pipeline.execute()
        return found

    def fields(self, key: str, names: Sequence[bytes]) -> list[bytes | None]:
        """Return fields of a hash; None for those that it does not have."""
        found: list[bytes | None] = []
        for start in range(0, len(names), 1_000):
            found += self.run("HMGET", key, *names[start : start + 1_000])
        return found

    def every_field(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        """Return all fields of a hash with their values; one may come twice."""
        cursor: Any = 0
        while True:
            cursor, found = self.run("HSCAN", key, cursor, "COUNT", 1_000)
            yield from found.items()
            if int(cursor) == 0:
                return

    def script(self, script: Script, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script; a server that does not know it is told."""
        try:
            return self.run("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except self._redis.exceptions.NoScriptError:
            return self.run("EVAL", script.source, len(keys), *keys, *arguments)

    def finds_slots(self, error: BaseException) -> bool:
        """Whether a refusal says that a script may only touch keys of one slot; remembered."""
        if not re.search("CROSSSLOT|CrossSlot|same slot", repr(error)):
            return False
        self.clustered = True
        return True

    def scan(self, pattern: str) -> Iterator[bytes]:
        """Return the keys, of all nodes, that fit a pattern; some may come twice."""
        yield from self._client.scan_iter(match=pattern, count=1_000)

    def close(self) -> None:
        """Give back the connections, unless they are somebody else's."""
        if self._own and not self._closed:
            self._client.close()
        self._closed = True

    def _connect(self, url: str, timeout: float) -> redis.Redis:
        try:
            # No retries: a write whose answer was lost may have come through. Whoever asked for it
            # compares versions.
            client = self._redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),
            )
            pool = client.connection_pool  # made, not connected: an unknown option shows now
            pool.connection_class(**pool.connection_kwargs)
            return client
        except (ValueError, TypeError):
            # Not shown, and no cause: it may hold a password at a place where nobody expects it.
            raise OptionError(
                "expected the URL of a Redis server, such as 'redis://:password@host:6379/0', and "
                "what was given is none; a password with special characters in it must be "
                "percent-encoded"
            ) from None

    def _shown(self) -> str:
        """Where the server is, without user and password."""
        if not hasattr(self._client, "connection_pool"):
            return "the Redis Cluster"
        where = self._client.connection_pool.connection_kwargs
        address = where.get("path") or f"{where.get('host', '')}:{where.get('port', '')}"
        return f"Redis at {address}/{where.get('db', 0)}"

    def _meaning(self, error: BaseException) -> str:
        said = f"{type(error).__name__}: {error}"
        found = [meaning for words, meaning in _MEANINGS.items() if re.search(words, said)]
        if found:
            return found[0]
        if isinstance(error, self._redis.ConnectionError | self._redis.TimeoutError):
            return f"{_LOST} ({type(error).__name__})"
        return f"it refused what it was asked ({said[:200]})"
