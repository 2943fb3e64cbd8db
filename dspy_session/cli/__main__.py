"""`python -m dspy_session.cli` is `dspy-session`."""

import sys

from dspy_session.cli import main

sys.exit(main())
