"""A proteus client that runs Tryton in this process: no server, no password."""

from __future__ import annotations

from typing import Any

import proteus  # type: ignore[import-not-found]


def connect(uri: str) -> Any:
    """Log in as the administrator, as a clerk who answers yes to every warning; returns proteus' configuration."""
    session = proteus.config.set_trytond(uri, user="admin")
    session.skip_warning = True
    return session


def take_preferences(session: Any) -> None:
    """Work for the company that the user belongs to."""
    session._context = proteus.Model.get("res.user").get_preferences(True, {})
