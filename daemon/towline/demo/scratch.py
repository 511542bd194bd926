"""Temporary directories that a dead process does not leave behind for ever.

Each holds a file ``lock``, locked by the process that made the directory for as long as that lives (the kernel sees to
it). Whoever makes the next one removes those whose lock nobody holds, and ends a server that still runs in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from towline.demo.process import is_alive, working_directory

PREFIX = "towline-scratch-"
#: Seconds after which a directory without a lock file is taken for a dead one, not for one being made.
GRACE = 600.0


class Scratch:
    """A new directory under the system's temporary one, removed on exit.

    Others can read it: servers run as another user.
    """

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self.path.chmod(0o755)
        self._lock = open(self.path / "lock", "wb")  # noqa: SIM115 (held until close)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the directory and all in it. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(parent: Path | None = None) -> list[Path]:
    """Remove the directories of dead processes of this user under ``parent``; returns those removed."""
    removed = []
    for path in sorted((parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError), _abandoned(path) as abandoned:
            if abandoned:
                for pidfile in path.glob("*/data/postmaster.pid"):
                    _end_server(pidfile)
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether the directory is of this user and nobody holds its lock; it is held while the answer is used."""
    status = path.lstat()
    if status.st_uid != os.geteuid() or path.is_symlink() or not path.is_dir():
        yield False
        return
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield time.time() - status.st_mtime > GRACE
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _end_server(pidfile: Path) -> None:
    """Kill the server that the file names, if that process is what it says: one that works in that directory."""
    pid = int(pidfile.read_text().split("\n", 1)[0])
    if is_alive(pid) and working_directory(pid) == pidfile.parent:
        os.kill(pid, signal.SIGKILL)
