"""Imported by the process that writers are forked from: they have done it once when they begin."""

import dspy
import psycopg
import redis.cluster
from sqlalchemy.dialects.postgresql import psycopg as dialect

from tests.writers import LM, SHARED, manager

__all__ = ["dialect", "psycopg", "redis"]

with manager("sqlite://") as _manager, dspy.context(lm=LM):
    _session = _manager.open(SHARED)
    _session(question="Ready?")
    _session.undo()
    _session.fork()
