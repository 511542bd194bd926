"""A file system of 1 MB. Only root can mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Make the directory, with a tmpfs mounted on it while the block runs; afterwards both are gone, come what may."""
    directory.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(directory))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(directory))  # also while somebody has files open there
        directory.rmdir()


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)
