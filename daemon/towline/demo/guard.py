"""Runs one program for as long as the process that asked for it lives.

Started as a process of its own by `towline.demo.server`, by file name and without site packages:

    python -I -S guard.py UID GID REMOVE PROGRAM ARGUMENTS…

Its standard input is a pipe whose other end only the parent has. The parent's death, by whatever signal, is the end
of that file on every system; the guard then ends the program and, if REMOVE is not empty, removes that directory.
SIGTERM is passed on. The parent's *threads* play no part, as they would with Linux's parent-death signal. That signal
is used one step down, between guard and program, in case the guard is killed: the guard has one thread only.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
#: Seconds that the program has for an immediate shutdown before it is killed.
PATIENCE = 5.0


def die_with_parent() -> None:
    """In the child, after the change of user (which would reset it): ask for SIGQUIT when the guard dies."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
    if os.getppid() == 1:
        os._exit(1)


def guard(uid: int, gid: int, remove: str, command: list[str]) -> int:
    """Run ``command`` (as ``uid``/``gid`` unless -1) until it ends or standard input does. Returns its exit status."""
    waker, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        user=None if uid < 0 else uid,
        group=None if gid < 0 else gid,
        extra_groups=None if gid < 0 else [],
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        ready, _, _ = select.select([0, waker], [], [])
        if waker in ready:
            os.read(waker, 512)
        if 0 in ready and not os.read(0, 512):
            end(child)
            if remove:
                shutil.rmtree(remove, ignore_errors=True)
    return child.returncode


def end(child: subprocess.Popen[bytes]) -> None:
    """Immediate shutdown in PostgreSQL's terms; then, if that is not heard, SIGKILL."""
    child.send_signal(signal.SIGQUIT)
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(abs(guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])))
