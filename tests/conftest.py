"""The fixtures that any test may take, and the options of the suite.

pytest --kills=200 tests/test_crash.py          that many processes are killed, not just a few
pytest --turns=50 tests/test_contention.py      so many turns of each process, in every store
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import _end_servers, cluster_url, postgres_url, redis_url
from tests.tracking import _tracking_store, tracked

__all__ = [
    "_end_servers",
    "_tracking_store",
    "cluster_url",
    "kills",
    "postgres_url",
    "redis_url",
    "tracked",
]

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # no test may reach the network

# Neither fails because the machine is busy: both would be a wall-clock time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="how many processes to kill")
    parser.addoption("--turns", type=int, help="how many turns of each process")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many processes a test of crashes kills."""
    return int(request.config.getoption("--kills"))
