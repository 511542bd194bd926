"""All that take part."""

from __future__ import annotations

from collections.abc import Sequence

from bench.builtin import Subscription
from bench.ceilings import Applied, Decoded, Piped, Received
from bench.contender import Contender
from bench.debezium import Debezium
from bench.towline_daemon import Towline

#: What ratios are to.
REFERENCE = "builtin"


def contenders(variants: Sequence[str] = ()) -> dict[str, Contender]:
    """By name. ``variants``: more of Towline, ``NAME=PATH=VALUE[,PATH=VALUE]…``; ``select-…`` through the SELECT.

    Raises ValueError when one is not of that form.
    """
    everyone: list[Contender] = [
        Subscription(),
        Subscription(binary=True),
        Towline(),
        Towline("towline-select", select=True),
        *map(variant, variants),
        Debezium(),
        Received(),
        Received(binary=True),
        Decoded(),
        Decoded(binary=True),
        Applied(direct=False),
        Applied(direct=True),
        Piped(binary=False),
        Piped(binary=True),
    ]
    return {contender.name: contender for contender in everyone}


def variant(text: str) -> Towline:
    """One of Towline's. Raises ValueError."""
    name, _, settings = text.partition("=")
    options = dict(each.split("=", 1) for each in settings.split(",") if each)
    if not name or not options:
        raise ValueError(f"not NAME=PATH=VALUE: {text}")
    return Towline(f"towline-{name}", select=name.startswith("select-"), options=options)
