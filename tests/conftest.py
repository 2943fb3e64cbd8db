"""The fixtures that any test may take, and the options of the suite.

pytest --kills=200 tests/test_crash.py          that many processes are killed, not just a few
pytest --turns=50 tests/test_contention.py      so many turns of each of eight processes
"""

import pytest

from tests.servers import _end_servers, cluster_url, postgres_url, redis_url

__all__ = ["_end_servers", "cluster_url", "kills", "postgres_url", "redis_url", "turns"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=16, help="how many processes to kill")
    parser.addoption("--turns", type=int, default=10, help="how many turns of each process")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many processes a test of crashes kills."""
    return int(request.config.getoption("--kills"))


@pytest.fixture
def turns(request: pytest.FixtureRequest) -> int:
    """How many turns each process of a test of contention takes."""
    return int(request.config.getoption("--turns"))
