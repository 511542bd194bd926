"""What the system says of processes, from /proc or, where there is none, from ps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LINUX = sys.platform == "linux"


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for child, parent, state in _table():
        if parent == pid and state != "Z":
            found.append(child)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process is there and still runs; a zombie that its parent forgot does not count."""
    if LINUX:
        entry = _read_stat(pid)
        return entry is not None and entry[2] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def working_directory(pid: int) -> Path | None:
    """Where the process works; None when that cannot be found out."""
    if LINUX:
        try:
            return Path(os.readlink(f"/proc/{pid}/cwd"))
        except OSError:
            return None
    listing = subprocess.run(
        ["lsof", "-a", "-d", "cwd", "-p", str(pid), "-Fn"], capture_output=True, text=True, check=False
    )
    names = [line[1:] for line in listing.stdout.splitlines() if line.startswith("n")]
    return Path(names[0]) if names else None


def _table() -> list[tuple[int, int, str]]:
    """(pid, parent, state) of every process."""
    if LINUX:
        entries = (_read_stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
        return [entry for entry in entries if entry is not None]
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in listing.stdout.splitlines())
    return [(int(pid), int(parent), state[:1]) for pid, parent, state in rows]


def _read_stat(pid: int) -> tuple[int, int, str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything: what follows the last one is plain.
    state, parent = text[text.rindex(")") + 2 :].split(None, 2)[:2]
    return pid, int(parent), state
