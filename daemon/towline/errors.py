"""Coded errors: what happened, whether trying again can help, and what a person should do.

Every error that Towline raises on purpose is a class here (or a problem of a route, coded in
`towline_transforms.problems`). The class's docstring is the cause as docs/ERRORS.md prints it; ``remedy`` says what
to do; ``action`` decides what the supervisor does and which exit code a command ends with.

Messages never hold values of rows or secrets: names of things, positions, counts and SQLSTATEs only.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Action(enum.IntEnum):
    """What becomes of an error; the number is the exit code of a command that ends with it."""

    RETRY = 1  # the world may be different soon: back off, restart from the durable checkpoint
    CONFIGURE = 2  # the command line, the pipeline file or a route is wrong
    STOP = 3  # a person must act; going on would guess


class TowlineError(Exception):
    """Something went wrong that has no code of its own: a defect of Towline."""

    code: ClassVar[str] = "TL-900"
    action: ClassVar[Action] = Action.STOP
    remedy: ClassVar[str] = "Report it with the log of the last minute; the data are as of the last checkpoint."

    #: Nothing ends with it: `towline verify` reports it, and has an exit code of its own for what it finds.
    reported: ClassVar[bool] = False
    #: It was logged already, as the last event of a daemon.
    told = False

    def __init__(self, detail: str, *, hint: str = "", sqlstate: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def advice(self) -> str:
        """What to do: the hint for this very case, or else the class's remedy."""
        return self.hint or self.remedy


# ---- TL-1xx: configuration ------------------------------------------------------------------------------------


class ConfigurationInvalid(TowlineError):
    """The pipeline file has an unknown key, a wrong type, a missing value or an impossible combination."""

    code = "TL-101"
    action = Action.CONFIGURE
    remedy = "Correct the file at the line named; `towline schema` prints what is allowed, for editors."


class SecretMissing(TowlineError):
    """The pipeline file refers to an environment variable or a secret file that is not there."""

    code = "TL-102"
    action = Action.CONFIGURE
    remedy = "Set the variable, or mount the file, for the process that runs towline."


class RoutesRefused(TowlineError):
    """Routes do not hold against the catalogs of source and target; each problem has a code of its own (TL-2xx)."""

    code = "TL-200"
    action = Action.CONFIGURE
    remedy = "Change the routes as each problem says; `towline check` shows them all at once."


# ---- TL-3xx: source -------------------------------------------------------------------------------------------


class SourceUnavailable(TowlineError):
    """The source database does not answer, ended the connection, or is starting or stopping."""

    code = "TL-301"
    action = Action.RETRY
    remedy = (
        "Nothing, if it comes back: `towline run` tries again by itself. Else see whether the address is right, "
        "and what the source's log says."
    )


class SourceRefused(TowlineError):
    """The source refuses the login, or the role lacks a privilege that replication needs."""

    code = "TL-302"
    remedy = (
        "See whether user and password are right. The role needs LOGIN, REPLICATION and SELECT on the routed tables, "
        "and a line in pg_hba.conf that lets it in."
    )


class SourceSettings(TowlineError):
    """A setting of the source server does not allow logical replication as configured."""

    code = "TL-303"
    remedy = "Change the setting named, and restart or reload the source as the message says."


class SlotMissing(TowlineError):
    """The replication slot does not exist at the source although the target has a checkpoint."""

    code = "TL-304"
    remedy = (
        "Changes since the checkpoint can no longer be read. Find out who dropped the slot, then run `towline resync`: "
        "it makes the slot anew and has all routes copied again, while the target stays readable."
    )


class SlotUnusable(TowlineError):
    """There is a slot of that name at the source, but it is a physical one."""

    code = "TL-305"
    remedy = "The slot is somebody else's: name another one as `source.slot`, then run `towline resync`."


class SlotInUse(TowlineError):
    """Another process is streaming from the replication slot."""

    code = "TL-306"
    action = Action.RETRY
    remedy = "If another Towline runs this pipeline, this one waits as its standby. Else end the walsender named."


class SlotAhead(TowlineError):
    """The slot was confirmed beyond the target's checkpoint: changes between the two are lost to this pipeline."""

    code = "TL-307"
    remedy = (
        "Something else confirmed the slot, or the target was restored to an older state, or a standby of it took over "
        "that lacked its last commits. Find out which, then run "
        "`towline resync`: all routes are copied again, while the target stays readable."
    )


class SourceReplaced(TowlineError):
    """The server behind the source address is not the one that the checkpoint belongs to: its system identifier
    differs."""

    code = "TL-308"
    remedy = "Point the pipeline at the right server. If the change is meant, run `towline resync`."


class NotSetUp(TowlineError):
    """The slot, the publication, the control tables or a target table do not exist yet."""

    code = "TL-309"
    remedy = "Run `towline apply` once; `towline plan` shows what it would create."


class StreamMalformed(TowlineError):
    """The bytes that the output plugin sent are not what its protocol says."""

    code = "TL-310"
    remedy = "Nothing of that transaction was applied. Report it with the versions of server and plugin."


class SourceTableChanged(TowlineError):
    """A routed table no longer has a column, a type or a replica identity that its routes need."""

    code = "TL-311"
    remedy = (
        "Change the target table or the routes to match, then `towline apply` and start again: it goes on "
        "from the checkpoint."
    )


class SourceTruncated(TowlineError):
    """A routed table was truncated at the source, and its route says `on_truncate: halt`."""

    code = "TL-312"
    remedy = "Set `on_truncate: delete` (empty the target too) or `ignore` for the route, and start again."


class SourceQueryFailed(TowlineError):
    """A query at the source failed for a reason other than the connection."""

    code = "TL-313"
    remedy = "See the SQLSTATE and the message; the source's log has the statement."


class PluginRefused(TowlineError):
    """The server does not have the output plugin, or does not allow it."""

    code = "TL-314"
    remedy = "Install the plugin on the source, allow it in output_plugin_libraries, or use `plugin: pgoutput`."


class SlotOfAnotherDatabase(SlotUnusable):
    """The slot belongs to another database of the same server."""

    code = "TL-320"
    remedy = "Point the pipeline at that database, or name another slot as `source.slot`; then run `towline resync`."


class SlotOfAnotherPlugin(SlotUnusable):
    """The slot was made for another output plugin: it was dropped and made anew, or `source.plugin` was changed."""

    code = "TL-321"
    remedy = (
        "Set `source.plugin` back, if that was the change. Else run `towline resync`: it makes the slot anew, and has "
        "all routes copied again."
    )


class SlotLost(SlotUnusable):
    """The source has removed log that the slot needs: its `wal_status` is lost."""

    code = "TL-322"
    remedy = (
        "Run `towline resync`: it makes the slot anew and has all routes copied again. Then raise "
        "max_slot_wal_keep_size at the source to what it writes in the longest outage to expect."
    )


class SlotInvalidated(SlotUnusable):
    """The source has invalidated the slot for a reason other than the size of its log: rows of its catalogs were
    removed on a standby, wal_level was lowered, or it was idle for too long."""

    code = "TL-323"
    remedy = (
        "Mend the reason named (hot_standby_feedback = on at a standby; wal_level = logical; "
        "idle_replication_slot_timeout = 0), then run `towline resync`: it makes the slot anew and has all routes "
        "copied again."
    )


class SlotSynchronized(TowlineError):
    """The source is a standby whose slot of that name follows the primary's: it can be read after a promotion only."""

    code = "TL-324"
    action = Action.RETRY
    remedy = (
        "Nothing while a failover is under way: the daemon tries again until a server of the dsn is the primary. Else "
        "name the primary in the dsn, or all servers with target_session_attrs=read-write."
    )


class SourceDatabaseReplaced(SourceReplaced):
    """The server behind the source address is the checkpoint's, but the database is another one."""

    code = "TL-325"
    remedy = "Point the pipeline at the right database. If the change is meant, run `towline resync`."


class TimelineDiverged(SourceReplaced):
    """The source went on from a point before the checkpoint: a standby was promoted, or a backup restored, that did
    not have all transactions that the target has."""

    code = "TL-326"
    remedy = (
        "The target has transactions that the source has lost. Save from it what is worth it, then run `towline "
        "resync`: all routes are copied again, and rows that the source does not have are removed. To keep a standby "
        "from falling behind the slot, name its slot in synchronized_standby_slots (PostgreSQL 17)."
    )


class TimelineUnrelated(SourceReplaced):
    """The source is on a timeline that does not descend from the checkpoint's: an older server, or another branch."""

    code = "TL-327"
    remedy = (
        "Point the pipeline at the server that is the primary now; a former primary must be stopped. If the change is "
        "meant, run `towline resync`."
    )


class SourceRewound(SourceReplaced):
    """The source's log ends before the checkpoint, on the same timeline: the server was set back to an older state."""

    code = "TL-328"
    remedy = (
        "A snapshot of the disk or a copy of the files was put back. The target has transactions that the source has "
        "lost: save from it what is worth it, then run `towline resync`."
    )


class PublicationMissing(NotSetUp):
    """The publication does not exist at the source, or was dropped and made anew after the slot."""

    code = "TL-329"
    remedy = (
        "Run `towline resync`: a slot cannot read a publication that was made after it, so it makes both anew, and has "
        "all routes copied again."
    )


class PublicationLacksTable(NotSetUp):
    """The publication does not publish a routed table."""

    code = "TL-330"
    remedy = (
        "Run `towline apply`: it adds the table. Changes made meanwhile were not sent, so the daemon then copies its "
        "routes again."
    )


class PublicationLacksColumn(NotSetUp):
    """The publication's list of columns of a routed table lacks one that a route needs."""

    code = "TL-331"
    remedy = (
        "Run `towline apply`: it adds the column. Rows changed meanwhile lack its values, so the daemon then copies "
        "its routes again."
    )


class PublicationFiltered(NotSetUp):
    """The publication has a row filter on a routed table: rows would be missing without a word."""

    code = "TL-332"
    remedy = (
        "Run `towline apply`: it takes the filter away, and the daemon then copies the routes again, with the rows "
        "that were left out. Write the condition as WHERE in the route's SELECT instead."
    )


class PublicationLacksOperation(NotSetUp):
    """The publication does not publish all of insert, update, delete and truncate."""

    code = "TL-333"
    remedy = (
        "Run `towline apply`: it publishes them all. What was done meanwhile was not sent, so the daemon then copies "
        "the routes again."
    )


class PublicationNotViaRoot(NotSetUp):
    """The publication does not publish a partitioned table under its own name: `publish_via_partition_root` is off."""

    code = "TL-334"
    remedy = "Run `towline apply`: it sets publish_via_partition_root, and the daemon then copies the routes again."


class PublicationInterrupted(NotSetUp):
    """The publication has the table, but did not all the time: it was taken out and put back, or options of the
    publication were changed. Changes of that time were not sent."""

    code = "TL-340"
    remedy = "Run `towline apply`, or `towline resync ROUTE …`: the daemon then copies the routes again."


class SpoolFull(TowlineError):
    """Large transactions that are under way at the source take more than the spool may or can hold."""

    code = "TL-335"
    action = Action.RETRY
    remedy = (
        "Nothing at once: until those transactions have ended, the source keeps large ones itself and sends them when "
        "they commit. If it happens often, raise `spool.max_bytes` or name a directory with more room in "
        "`spool.directory`."
    )


class SpoolUnusable(TowlineError):
    """Files cannot be made or written in the spool's directory, as the daemon starts."""

    code = "TL-336"
    remedy = (
        "Make the directory and let the daemon write to it, name another one in `spool.directory`, or set "
        "`source.streaming: off`."
    )


class SpoolCorrupt(TowlineError):
    """A file of the spool does not hold what was written to it: the disk or its file system is failing."""

    code = "TL-337"
    action = Action.RETRY
    remedy = (
        "Nothing at once: the transaction is read again from the source. If it happens again, look after the disk "
        "that `spool.directory` is on."
    )


class SpoolFailed(TowlineError):
    """Files can no longer be made or written in the spool's directory: it is gone, or its file system fails."""

    code = "TL-338"
    action = Action.RETRY
    remedy = (
        "Nothing at once: the source keeps large transactions itself and sends them when they commit, until the "
        "directory can be written to again. Look after it and its disk."
    )


class ColumnAdded(SourceTableChanged):
    """A column was added to a table that is copied as it is, and the route says `on_schema_change: halt`."""

    code = "TL-315"
    remedy = (
        "Add the column to the target table (`towline check` prints the statement) and start again: it goes on from "
        "the checkpoint, and reads the column of the rows that are there already. Or set `on_schema_change` to "
        "`evolve` (add it by itself) or `ignore` (go on without it)."
    )


class ColumnChanged(SourceTableChanged):
    """A column that a route needs was dropped, renamed or given another type at the source."""

    code = "TL-316"
    remedy = (
        "Change the target table, or the route, to match the source, and start again: it goes on from the checkpoint. "
        "`towline check` says what does not match; `towline apply` takes the source's table as it is now."
    )


class IdentityChanged(SourceTableChanged):
    """The primary key or replica identity, by which the log names the rows of a routed table, is another one."""

    code = "TL-317"
    remedy = (
        "Restore it at the source; or give the target table a unique key over the new one, and run `towline apply`, "
        "which takes the table as it is now. Then start again."
    )


class TableGone(SourceTableChanged):
    """A routed table was dropped, renamed, or moved to another schema."""

    code = "TL-318"
    remedy = (
        "Restore it at the source; or take its route out of the file, or write its new name there. Then run "
        "`towline apply`, which forgets routes whose tables are gone, and start again. The target's rows stay."
    )


class PartitionDetached(SourceTableChanged):
    """A partition of a routed table was detached or dropped: its rows are gone at the source, not at the target."""

    code = "TL-339"
    remedy = (
        "Attach it again; or run `towline apply`, which takes the table as it is now, and start again: rows that the "
        "source no longer has are then removed from the target. With `on_truncate: delete` that needs no person, with "
        "`ignore` they stay."
    )


class TableRecreated(SourceTableChanged):
    """A routed table was dropped and made anew, or another one was given its name."""

    code = "TL-319"
    remedy = (
        "If the new table is to be replicated: `towline apply` has it copied at the next start, which then removes the "
        "rows that were only in the old one."
    )


# ---- TL-4xx: target -------------------------------------------------------------------------------------------


class TargetUnavailable(TowlineError):
    """The target database does not answer, ended the connection, is read-only, or ran out of a resource."""

    code = "TL-401"
    action = Action.RETRY
    remedy = (
        "Nothing, if it comes back: `towline run` tries again by itself. Else see whether the address is right, "
        "and what the target's log says."
    )


class TargetRefused(TowlineError):
    """The target refuses the login, or the role lacks a privilege."""

    code = "TL-402"
    remedy = (
        "See whether user and password are right. The role needs LOGIN and TEMPORARY on the database; USAGE on the "
        "schemas and SELECT, INSERT, UPDATE, DELETE on the tables that it fills; SELECT on those that it joins; CREATE "
        "where Towline is to make tables and schemas."
    )


class RowRefused(TowlineError):
    """The target refuses a row: a constraint, a cast, a NOT NULL column, a length, or an expression that raises."""

    code = "TL-403"
    remedy = "Correct the row at the source, the constraint at the target, or the route's SELECT; then start again."

    #: What the server says, which may quote values: for the quarantine, which holds the row itself, and nothing else.
    said = ""


class Fenced(TowlineError):
    """Another daemon has taken over this pipeline; this one may no longer write."""

    code = "TL-404"
    action = Action.RETRY
    remedy = "Nothing: this daemon becomes the standby."


class TargetConflict(TowlineError):
    """The target cancelled the transaction in favour of another one (deadlock, serialization, lock timeout)."""

    code = "TL-405"
    action = Action.RETRY
    remedy = "Nothing: the batch is tried again. If it happens often, find out who else writes to the target's tables."


class TargetTableChanged(TowlineError):
    """A target table or a column that a route fills is gone, has another type, or can no longer be written to."""

    code = "TL-406"
    remedy = (
        "Restore it, or change the route, and run `towline apply`: a table that is gone it makes anew, and has its "
        "routes copied again."
    )


class ControlTablesForeign(TowlineError):
    """The control tables at the target are not of a form that this version knows."""

    code = "TL-407"
    remedy = "Use the version of Towline that made them, or another `target.schema`."


class ControlTablesOld(TowlineError):
    """The control tables at the target are of an earlier version of Towline."""

    code = "TL-412"
    remedy = "Run `towline apply`: it adds what they lack, and keeps what they hold. Then start again."


class QuarantineFlooded(TowlineError):
    """The target refuses so many different rows among a route's latest changes that something else is wrong."""

    code = "TL-408"
    remedy = (
        "Nothing of the batch is at the target or in the quarantine. Find out what changed at the target or in the "
        "route (the message names what the last row violated), retry or discard what is set aside (it counts, too), "
        "and start again; or raise `quarantine.max_share` if that many are to be set aside."
    )


class QuarantineFull(TowlineError):
    """More rows of a route (not changes of them) are in the quarantine than `quarantine.max_open` allows."""

    code = "TL-409"
    remedy = (
        "See `towline quarantine list`: correct what they have in common and retry them, or discard them; then start "
        "again."
    )


class TransactionRefused(TowlineError):
    """Of a transaction larger than a piece, too many rows are refused that what follows may put right; or a constraint
    that is checked when it ends is violated.
    """

    code = "TL-410"
    remedy = (
        "Which of its rows are bad cannot be told, so that none can be set aside. Correct the data or the constraint, "
        "or raise `batch.max_rows` beyond the transaction's size; then start again."
    )


class KeyUnreadable(TowlineError):
    """A row is to be set aside, but the target cannot receive the values of its key, by which it would be found."""

    code = "TL-411"
    remedy = "Correct the row at the source, or use a database at the target whose encoding is UTF8; then start again."


# ---- TL-5xx: pipeline -----------------------------------------------------------------------------------------


class RouteUnknown(TowlineError):
    """A command names a route that the pipeline does not have."""

    code = "TL-501"
    action = Action.CONFIGURE
    remedy = "`towline status` lists the routes."


class AlreadyRunning(TowlineError):
    """Another daemon runs this pipeline, and this command needs it for itself."""

    code = "TL-502"
    remedy = "Stop the other daemon first."


class ReloadRefused(TowlineError):
    """The configuration was read again on SIGHUP, and is wrong or needs a restart; the old one stays in force."""

    code = "TL-503"
    action = Action.CONFIGURE
    remedy = "Correct the file and send SIGHUP again, or restart when source or target changed."


class AddressInUse(TowlineError):
    """The address for metrics and health cannot be listened on."""

    code = "TL-504"
    action = Action.CONFIGURE
    remedy = (
        "Set `web.port` to a free port, or 0 for none. Another daemon may have it, of this pipeline too: a standby on "
        "the same host needs a file with a port of its own."
    )


class EntryUnknown(TowlineError):
    """A command names an entry of the quarantine that this pipeline does not have."""

    code = "TL-506"
    action = Action.CONFIGURE
    remedy = "`towline quarantine list` shows the entries that are open, with `--state all` every one."


class EntryClosed(TowlineError):
    """An entry of the quarantine is no longer open: it was retried, superseded or discarded."""

    code = "TL-507"
    action = Action.CONFIGURE
    remedy = "`towline quarantine show` says what became of it; there is nothing more to do."


class EditRefused(TowlineError):
    """An entry of the quarantine cannot be edited like this: no such column, a key, or a sensitive one."""

    code = "TL-508"
    action = Action.CONFIGURE
    remedy = (
        "Name columns of the source table that the route uses, but those of its key; correct keys and sensitive "
        "columns at the source."
    )


class ResyncUnfinished(TowlineError):
    """A `towline resync` was begun and not finished: the pipeline has no position from which it could go on."""

    code = "TL-510"
    remedy = "Run `towline resync` again: it goes on where it was."


class EvolutionRefused(TowlineError):
    """A route says `on_schema_change: evolve`, but the new column cannot be added at the target or published."""

    code = "TL-505"
    remedy = (
        "Do by hand what the message names, as a role that may, and start again; or set `on_schema_change: ignore`."
    )


# ---- TL-6xx: verification -------------------------------------------------------------------------------------


class VerifyUnsettled(TowlineError):
    """Rows could not be compared: the stream did not reach the position read from the source within the time
    allowed."""

    code = "TL-601"
    action = Action.RETRY
    remedy = "Start the daemon, or wait until its lag is small (`towline status`), then verify again."


class LedgerImbalance(TowlineError):
    """Rows that came from the source are not accounted for: the figures of a batch do not add up."""

    code = "TL-602"
    remedy = (
        "Nothing of the batch was committed: the target is as of the last checkpoint. It is a defect of Towline: "
        "report it with the log of the last minute. Starting again tries the batch again."
    )

    def __init__(self, detail: str, *, hint: str = "", sqlstate: str = "", route: str = "", rows: int = 0) -> None:
        super().__init__(detail, hint=hint, sqlstate=sqlstate)
        self.route = route
        self.rows = rows


class ChecksumDiffers(TowlineError):
    """The source keys of a route are not those that its ledger adds up to: changes were lost, or counted twice."""

    code = "TL-603"
    reported = True
    remedy = (
        "`towline verify` compares the rows as well, and `--repair` mends them; it also has the checksum begin anew. "
        "Report it with what `towline ledger` prints: the ledger and the rows are written in the same transactions."
    )


class OperationsDiffer(TowlineError):
    """The changes that a route's ledger notes are not those of the source's log: some were lost, or counted twice."""

    code = "TL-604"
    reported = True
    remedy = (
        "`towline verify` compares the rows as well, and `--repair` mends them. Unless somebody wrote to the ledger or "
        "moved the checkpoint, report it with what `towline ledger --json` prints."
    )


def all_errors() -> list[type[TowlineError]]:
    """Every coded error, by code."""
    found: list[type[TowlineError]] = [TowlineError]
    for error in found:
        found.extend(error.__subclasses__())
    return sorted(found, key=lambda error: error.code)
