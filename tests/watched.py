"""Runs a server for as long as somebody holds the other end of its standard input.

    python tests/watched.py FOLDER USER COMMAND ...

So a server ends with the tests that started it, even if those are killed: it is interrupted, and
its folder removed. If the server ends before, the folder stays. `tests.servers` uses it.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

PATIENCE = 10.0
"""How many seconds a server has to end of its own accord."""


def as_user(user: str) -> dict[str, Any]:
    """What `subprocess` needs to run something as another user; nothing for `""`."""
    if not user:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def main(folder: str, user: str, *command: str) -> None:
    with open(os.path.join(folder, "log"), "ab") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **as_user(user),
        )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    left = threading.Event()

    def end_when_left() -> None:
        sys.stdin.read()
        left.set()
        server.send_signal(signal.SIGINT)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()

    threading.Thread(target=end_when_left, daemon=True).start()
    server.wait()
    if left.is_set():
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
