"""Faults that a start finds: the source, its slot or its publication is another; a resync that is killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.faults.fault import Fault
from tests.faults.phases import PLUGINS, Phase
from tests.faults.puppet import RESYNC, Puppet
from tests.faults.trial import PATIENCE, Trial
from tests.support.databases import create_database, drop_database

GROUP = "What a start finds"
_SLOT = "slot_name FROM pg_replication_slots WHERE database = current_database()"


def elsewhere(code: str, lead: Callable[[Trial], tuple[str, str]]) -> Callable[[Trial], None]:
    """Killed at the point, and started with another source; halts with that code. Then with its own again.

    ``lead``: what in the pipeline file to replace, and by what.
    """

    def hit(trial: Trial) -> None:
        trial.kill()
        own, other = lead(trial)
        trial.edit(own, other)
        trial.start()
        trial.halted(code)
        trial.never_ahead()
        trial.edit(other, own)
        trial.start()
        trial.over()

    return hit


def other_database(trial: Trial) -> tuple[str, str]:
    """The dsn names another database of the same server."""
    other = create_database(trial.source_server)
    trial.stack.callback(drop_database, trial.source_server, other)
    return f"dbname={trial.name['source']} ", f"dbname={other} "


def other_server(trial: Trial) -> tuple[str, str]:
    """The dsn leads to another server, where a database has the same name."""
    other = create_database(trial.target_server, f"{trial.name['source']}")
    trial.stack.callback(drop_database, trial.target_server, other)
    return f"port={trial.proxies['source'].port}", f"port={trial.target_server.port}"


def other_plugin(trial: Trial) -> tuple[str, str]:
    """The file names the other plugin."""
    other = next(plugin for plugin in PLUGINS if plugin != trial.plugin)
    return f"plugin: {trial.plugin}", f"plugin: {other}"


def ahead(trial: Trial) -> None:
    """Somebody else reads from the slot while no daemon runs: halts. The remedy is `towline resync`."""
    trial.kill()
    trial.go()
    trial.write_all()
    trial.at("source", f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM (SELECT {_SLOT}) s")
    trial.start()
    trial.halted("TL-307")
    trial.resync()
    trial.start()
    trial.over()


def unpublished(trial: Trial) -> None:
    """A table is taken out of the publication, and written to: halts. Then `apply`, and `resync` of it."""
    trial.kill()
    (name,) = trial.at("source", "SELECT pubname FROM pg_publication_tables LIMIT 1")[0]
    trial.at("source", f"ALTER PUBLICATION {name} DROP TABLE journal")
    trial.go()
    trial.write_all()
    trial.start()
    trial.halted("TL-33")
    trial.apply()
    trial.resync("public.journal")
    trial.start()
    trial.over()


def resync_killed(trial: Trial) -> None:
    """The slot is dropped; `towline resync` is killed after one of its steps, and run again; its copying is killed."""
    trial.kill()
    trial.at("source", f"SELECT pg_drop_replication_slot(slot_name) FROM (SELECT {_SLOT}) s")
    trial.go()
    verb = Puppet(RESYNC, trial.path, trial.path.with_suffix(".resync"), ("step", trial.random.randint(1, 2)))
    trial.stack.callback(verb.kill)
    verb.await_paused(PATIENCE)
    verb.kill()
    trial.start()
    trial.halted("TL-")
    trial.resync()
    trial.start(("chunk-loaded", trial.random.randint(1, 4)))
    trial.daemon.await_paused(PATIENCE)
    trial.kill()
    trial.start()
    trial.over()


_NOT_VERIFYING: Mapping[Phase, str] = {Phase.VERIFYING: "b"}
FAULTS = (
    Fault("other-database", GROUP, "another database of the server: halts (TL-325), then its own again",
          elsewhere("TL-325", other_database), _NOT_VERIFYING),
    Fault("other-server", GROUP, "another server: halts (TL-308), then its own again",
          elsewhere("TL-308", other_server), _NOT_VERIFYING),
    Fault("other-plugin", GROUP, "the other plugin in the file: halts (TL-321), then its own again",
          elsewhere("TL-321", other_plugin), _NOT_VERIFYING),
    Fault("slot-ahead", GROUP, "somebody else reads from the slot: halts (TL-307), then `towline resync`", ahead,
          _NOT_VERIFYING),
    Fault("publication", GROUP, "a table is taken out of the publication: halts (TL-330), then `apply` and `resync`",
          unpublished, _NOT_VERIFYING, wal2json="h"),
    Fault("resync-killed", GROUP, "slot dropped, `towline resync` killed midway and run again, then its copying killed",
          resync_killed, _NOT_VERIFYING),
)  # fmt: skip
