"""Tells systemd what the daemon is doing, when it asked for it.

Source: sd_notify(3), "Notes": a datagram of NAME=value lines to the Unix socket in $NOTIFY_SOCKET.
"""

from __future__ import annotations

import logging
import socket

from towline.config import notify_socket
from towline.logs import event

log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send e.g. ``"READY=1"``; does nothing when not started by systemd with Type=notify."""
    address = notify_socket()
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.connect("\0" + address[1:] if address.startswith("@") else address)
            client.send(state.encode())
        except OSError as error:
            event(log, logging.WARNING, "notify_failed", error=error.strerror)
