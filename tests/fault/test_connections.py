"""Lines that are cut, go silent or are slow, between the daemon and either database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.harness import Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.proxy import Proxy
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 1000


@contextmanager
def proxied(
    pg18: Server, hub18: Server, new_database: NewDatabase, directory: Path
) -> Iterator[tuple[Fault, dict[str, Proxy]]]:
    """A pipeline whose daemon reaches both databases through proxies."""
    source, hub = new_database(pg18), new_database(hub18)
    with Proxy(pg18.port) as to_source, Proxy(hub18.port) as to_hub:
        through = (to_source.dsn(source), to_hub.dsn(hub))
        with fault(directory, source, hub, rows=ROWS, through=through) as under:
            yield under, {"source": to_source, "hub": to_hub}


def finish(under: Fault) -> None:
    """Caught up with the source, stopped, equal."""
    under.await_position()
    under.daemons[-1].stop()
    under.verify()
    under.never_ahead()


@pytest.mark.parametrize("side", ["source", "hub"])
@pytest.mark.parametrize("towards", ["client", "server", "both"])
def test_cut_again_and_again(
    side: str, towards: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The line is reset towards either end, or both, during the copy and under load; the daemon comes back alone."""
    with proxied(pg18, hub18, new_database, tmp_path) as (under, proxies):
        proxy = proxies[side]
        daemon = under.daemon()
        with shop(under, seed=11, rows=ROWS):
            for _ in range(4):
                under.await_progress()
                proxy.cut(client=towards != "server", server=towards != "client")
                seen = proxy.accepted
                if towards == "server":  # the daemon is not told: its line is half open, until that is cut too
                    proxy.cut()
                until(lambda seen=seen: proxy.accepted > seen, 60, daemon.log)  # type: ignore[misc]
        finish(under)


@pytest.mark.parametrize("side", ["source", "hub"])
@pytest.mark.parametrize("up", [True, False], ids=["requests", "answers"])
def test_cut_in_the_middle_of_a_message(
    side: str, up: bool, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Cut after some number of bytes, so in the middle of whatever is said: a COPY, a commit, a tuple."""
    with proxied(pg18, hub18, new_database, tmp_path) as (under, proxies):
        proxy = proxies[side]
        daemon = under.daemon()
        with shop(under, seed=12, rows=ROWS):
            for count in (100, 1_001, 5_003, 20_011):
                until(proxy.cut_after(count, up=up).is_set, 60, daemon.log)
                under.await_progress()
        finish(under)


@pytest.mark.parametrize("side", ["source", "hub"])
def test_unreachable_for_a_while(
    side: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Nobody can connect: the daemon backs off, says so, and carries on when it can."""
    code = {"source": "code=TL-301", "hub": "code=TL-401"}[side]
    with proxied(pg18, hub18, new_database, tmp_path) as (under, proxies):
        daemon = under.daemon()
        with shop(under, seed=13, rows=ROWS):
            under.await_progress()
            proxies[side].refuse()
            proxies[side].cut()
            until(lambda: daemon.log().count(code) >= 2, 60, daemon.log)
            proxies[side].resume()
            under.await_progress()
        finish(under)


@pytest.mark.parametrize("side", ["source", "hub"])
def test_held_and_released(side: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Silence in both directions, then all that was held arrives at once."""
    with proxied(pg18, hub18, new_database, tmp_path) as (under, proxies):
        under.daemon()
        with shop(under, seed=14, rows=ROWS) as writer:
            under.await_progress()
            proxies[side].hold()
            before = writer.transactions
            until(lambda: writer.transactions > before + 300, 60)
            proxies[side].release()
            under.await_progress()
        finish(under)


def test_a_slow_line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Ten milliseconds each way to the hub: slower, but it keeps up, since batches grow."""
    with proxied(pg18, hub18, new_database, tmp_path) as (under, proxies):
        proxies["hub"].delay(0.01)
        under.daemon()
        with shop(under, seed=15, rows=ROWS) as writer:
            under.await_progress()
            before = writer.transactions
            until(lambda: writer.transactions > before + 300, 60)
        finish(under)
