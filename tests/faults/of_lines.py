"""Faults of the lines: cut at each phase of the protocol in each direction, silent, half open, slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.faults.fault import Fault
from tests.faults.phases import Phase
from tests.faults.trial import PATIENCE, Trial
from tests.support.wire import STARTUP, Message, Trap, asks

GROUP = {"source": "The line to the source", "target": "The line to the target"}

#: Messages by which a line is cut. Of those of the client either the message or the answer to it is lost.
STARTING = Trap(True, lambda message: message.kind == STARTUP and not asks(message))
REPLICATING = Trap(True, lambda message: message.kind == "Q" and message.head.startswith(b"START_REPLICATION"))
DATA = Trap(False, lambda message: message.kind == "d" and message.head.startswith(b"w"))
KEEPALIVE = Trap(False, lambda message: message.kind == "d" and message.head.startswith(b"k"))
STATUS = Trap(True, lambda message: message.kind == "d" and message.head.startswith(b"r"))
BEGIN = Trap(True, lambda message: message.kind in "PB" and message.query.startswith(b"BEGIN\0"))
STATEMENT = Trap(True, lambda message: message.kind in "PB" and _of_route(message))
ROWS = Trap(True, lambda message: message.kind == "d" and message.size > 100)
COPIED = Trap(True, lambda message: message.kind == "c")
QUERY = Trap(True, lambda message: message.kind == "Q" and message.head.startswith(b"COPY (SELECT"))
CHUNK = Trap(False, lambda message: message.kind == "d" and not message.head.startswith((b"w", b"k")))
COMMIT = Trap(True, lambda message: message.kind in "PB" and message.query.startswith(b"COMMIT\0"))


def _of_route(message: Message) -> bool:
    """A statement on a table that is filled, be it a copied or a selected one."""
    return b"replica" in message.query or b"open_sale" in message.query or message.query.startswith(b"WITH produced")


def trapped(side: str, trap: Trap, lose: str, *, reconnect: int = False, spread: int = 0) -> Callable[[Trial], None]:
    """Cut at the message. ``reconnect``: cut all lines first, since the message is one of a new connection.
    ``spread``: so many of the kind may pass before, by the seed.
    """

    def hit(trial: Trial) -> None:
        proxy = trial.proxies[side]
        tripped = proxy.trap(Trap(trap.up, trap.matches, lose, trial.random.randint(0, spread)))
        if reconnect:
            proxy.cut()
        trial.go()
        assert tripped.wait(PATIENCE), f"the message to cut at was never sent: {trial.daemon.log()}"
        trial.over()

    return hit


def cut(side: str, *, client: bool, server: bool) -> Callable[[Trial], None]:
    """Reset at one end or both; the end that is not told keeps its session until the other comes again."""

    def hit(trial: Trial) -> None:
        proxy = trial.proxies[side]
        proxy.cut(client=client, server=server)
        trial.go()
        if not client:  # the daemon does not know: whoever writes learns of it in time, here by a reset
            trial.write_all()
            proxy.cut()
        trial.over()

    return hit


def swallow(side: str) -> Callable[[Trial], None]:
    """Silence both ways while the source writes all, then a reset: what was under way is lost."""

    def hit(trial: Trial) -> None:
        proxy = trial.proxies[side]
        proxy.hold()
        trial.go()
        trial.write_all()
        proxy.cut()
        proxy.release()
        trial.over()

    return hit


def hold(side: str, *, up: bool = True, down: bool = True) -> Callable[[Trial], None]:
    """Silence, one way or both, while the source writes all; then everything arrives at once."""

    def hit(trial: Trial) -> None:
        proxy = trial.proxies[side]
        proxy.hold(up=up, down=down)
        trial.go()
        trial.write_all()
        proxy.release()
        trial.over()

    return hit


def delay(side: str) -> Callable[[Trial], None]:
    """Ten milliseconds each way, from now on."""

    def hit(trial: Trial) -> None:
        trial.proxies[side].delay(0.01)
        trial.over()

    return hit


def unreachable(side: str) -> Callable[[Trial], None]:
    """All lines are cut and nobody can connect, until the daemon has tried twice."""

    def hit(trial: Trial) -> None:
        proxy = trial.proxies[side]
        proxy.refuse()
        proxy.cut()
        trial.go()
        trial.daemon.await_logged({"source": "code=TL-301", "target": "code=TL-401"}[side], 2)
        proxy.resume()
        trial.over()

    return hit


def _only(*phases: Phase) -> Mapping[Phase, str]:
    """Empty in all other phases, since the message is not sent there."""
    return {phase: "a" for phase in Phase if phase not in phases}


S, T = GROUP["source"], GROUP["target"]
LOST = {"message": "lost", "answer": "arrives, the answer is lost"}


def _protocol(
    side: str, name: str, what: str, trap: Trap, *, empty: Mapping[Phase, str] | None = None, **options: int
) -> list[Fault]:
    """A message of the client: lost, and its answer lost."""
    none = empty or {}
    return [
        Fault(f"{side}-{name}-{lose}", GROUP[side], f"cut: {what} {how}", trapped(side, trap, lose, **options), none)
        for lose, how in LOST.items()
    ]


FAULTS = (
    *_protocol("source", "startup", "startup message", STARTING, reconnect=True, spread=2),
    *_protocol("source", "start", "START_REPLICATION", REPLICATING, reconnect=True),
    *_protocol("source", "query", "the query of a chunk", QUERY,
               empty={**_only(Phase.SNAPSHOT), Phase.VERIFYING: "d"}),
    Fault("source-chunk", S, "cut: in the middle of a chunk's rows", trapped("source", CHUNK, "message"),
          _only(Phase.SNAPSHOT, Phase.VERIFYING)),
    Fault("source-data", S, "cut: in the middle of a row of the stream", trapped("source", DATA, "message", spread=5)),
    Fault("source-keepalive", S, "cut: in the middle of a keepalive", trapped("source", KEEPALIVE, "message")),
    Fault("source-status", S, "cut: in the middle of an acknowledgement", trapped("source", STATUS, "message")),
    *_protocol("target", "startup", "startup message", STARTING, reconnect=True, spread=2),
    *_protocol("target", "begin", "BEGIN", BEGIN),
    *_protocol("target", "statement", "a statement on rows", STATEMENT, spread=2),
    Fault("target-rows", T, "cut: in the middle of COPY", trapped("target", ROWS, "message")),
    Fault("target-copied", T, "cut: COPY is done, the answer is lost", trapped("target", COPIED, "answer")),
    *_protocol("target", "commit", "COMMIT", COMMIT),
    *(
        fault
        for side, group in GROUP.items()
        for fault in (
            Fault(f"{side}-reset", group, "reset at both ends", cut(side, client=True, server=True)),
            Fault(f"{side}-half-open-server", group, "reset at the daemon; the server is not told",
                  cut(side, client=True, server=False)),
            Fault(f"{side}-half-open-client", group, "reset at the server; the daemon is not told, until it is",
                  cut(side, client=False, server=True)),
            Fault(f"{side}-swallow", group, "swallows everything silently, then resets", swallow(side)),
            Fault(f"{side}-hold", group, "silent, then all arrives at once", hold(side)),
            Fault(f"{side}-hold-up", group, "silent towards the server, then all arrives at once",
                  hold(side, down=False)),
            Fault(f"{side}-hold-down", group, "silent towards the daemon, then all arrives at once",
                  hold(side, up=False)),
            Fault(f"{side}-delay", group, "10 ms later each way, from then on", delay(side)),
            Fault(f"{side}-unreachable", group, "unreachable until the daemon has tried twice", unreachable(side)),
        )
    ),
)  # fmt: skip
