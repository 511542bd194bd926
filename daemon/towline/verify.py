"""Verifies a pipeline: `towline verify`. How a route is verified: `towline.route_verifier`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from towline.change import Relation
from towline.checksum_verifier import ChecksumVerifier
from towline.config import PipelineConfig
from towline.differences import EVOLVING, Keys, Report, RouteReport
from towline.errors import Action, RoutesRefused, SourceReplaced, TowlineError, VerifyUnsettled
from towline.footing import Footing
from towline.operations_verifier import OperationsVerifier
from towline.plan import Prepared, prepare
from towline.route_verifier import Progress, RouteVerifier
from towline.source import Tables
from towline.source.postgres.kept_log import PostgresKeptLog
from towline.source.postgres.pending import PendingChanges
from towline.source.postgres.tables import PostgresTables
from towline.target.postgres.compare import CompareSession
from towline_transforms.route import Route

#: How often a route is compared whose source table changes meanwhile, and is followed each time.
ATTEMPTS = 3


def verify(
    prepared: Prepared,
    *,
    routes: Collection[str] | None = None,
    repair: bool = False,
    timeout: float = 60.0,
) -> Report:
    """Verify the routes of those names (all, for None), and mend what differs when asked to.

    A route whose source table changed meanwhile is compared once more, as it is then, when the daemon has followed.
    ``timeout``: how long the target may take to reach a position (seconds). Raises NotSetUp, SourceReplaced,
    VerifyUnsettled, and what the two ends raise.
    """
    report = _verify(prepared, routes, repair=repair, timeout=timeout, operations=True)
    for _ in range(ATTEMPTS - 1):
        again = [route.route for route in report.routes if route.again]
        if not again:
            break
        try:
            with prepare(prepared.config, applied=True) as afresh:
                later = _verify(afresh, again, repair=repair, timeout=timeout, operations=False)
                report = report.amended(later)
        except RoutesRefused:  # a route no longer holds, which the daemon halts for
            break
    return report


def _verify(
    prepared: Prepared, routes: Collection[str] | None, *, repair: bool, timeout: float, operations: bool
) -> Report:
    config = prepared.config
    source_dsn = config.source.dsn.get_secret_value()
    relations = {relation.name: relation for relation in prepared.relations}
    chosen = [
        (route, relations[route.source.name]) for route in prepared.routes if routes is None or route.name in routes
    ]
    with ExitStack() as stack:
        session = stack.enter_context(
            closing(
                CompareSession(
                    config.target.dsn.get_secret_value(),
                    schema=config.target.schema_name,
                    pipeline=config.pipeline,
                    routes=chosen,
                )
            )
        )
        tables = stack.enter_context(closing(PostgresTables(source_dsn, slot=config.source.slot)))
        pending = stack.enter_context(
            closing(
                PendingChanges(
                    source_dsn,
                    slot=config.source.slot,
                    plugin=config.source.plugin,
                    publication=config.source.publication,
                    relations=prepared.relations,
                    pipeline=config.pipeline,
                )
            )
        )
        verifier = stack.enter_context(
            closing(OperationsVerifier(lambda: keep_log(config, tables, chosen), session, chosen))
        )
        if operations:
            verifier.begin()
        report = verify_routes(
            tables,
            session,
            Progress(lambda: session.checkpoint().position, pending, timeout),
            chosen,
            chunk_rows=config.snapshot.chunk_rows,
            repair=repair,
            timeout=timeout,
        )
        return replace(report, operations=verifier.end()) if operations else report


def keep_log(
    config: PipelineConfig, tables: PostgresTables, routes: Sequence[tuple[Route, Relation]]
) -> PostgresKeptLog:
    """Have the source keep its log from here on. Raises what is in the way."""
    return PostgresKeptLog(
        config.source.dsn.get_secret_value(),
        slot=config.source.slot,
        plugin=config.source.plugin,
        publication=config.source.publication,
        relations=list({relation.name: relation for _, relation in routes}.values()),
        resolve=tables.root_of,
        server=tables.identity(),
        application_name=f"towline {config.pipeline} verify",
    )


def verify_routes(
    tables: Tables,
    session: CompareSession,
    progress: Progress,
    routes: Sequence[tuple[Route, Relation]],
    *,
    chunk_rows: int = 20_000,
    repair: bool = False,
    timeout: float = 60.0,
) -> Report:
    """As `verify`, with everything at hand. After a repair, routes that differed are verified again.

    A route whose checksum differs, though its rows may be right by now, is to begin a new one. Of one whose source
    table changes, its state is reported in place of what differs: see `towline.footing`.
    """
    here, known = tables.identity(), session.checkpoint().identity
    if (here.system_identifier, here.database) != (known.system_identifier, known.database):
        raise SourceReplaced(
            f"the checkpoint is of database {known.database} of the server {known.system_identifier}, "
            f"and the source is database {here.database} of the server {here.system_identifier}"
        )
    checksums = ChecksumVerifier(tables, session, progress, timeout)

    def one(route: Route, relation: Relation, *, mend: bool) -> RouteReport:
        footing = Footing(tables, session, route, relation)
        if footing.state != "streaming":
            return RouteReport(route.name, footing.state)
        if route.added:
            return RouteReport(route.name, EVOLVING, columns=dict.fromkeys(route.added, 0))
        report, failure = RouteReport(route.name), None
        try:
            with session.route(route, relation) as comparing:
                verifier = RouteVerifier(
                    tables, comparing, progress, chunk_rows=chunk_rows, repair=mend, hold=footing.hold
                )
                report = verifier.report
                verifier.run()
            report.checksum = checksums.check(route.name, relation)
        except TowlineError as error:
            if error.action is Action.RETRY and not isinstance(error, VerifyUnsettled):
                raise  # an end cannot be asked
            failure = error
        if (failure or report.doubtful) and (instead := footing.lost()) is not None:
            instead.repaired = report.repaired
            return instead
        if failure:
            raise failure
        if mend and report.checksum is Keys.DIFFER:
            checksums.begin_anew(route.name)
        return report

    first = [one(route, relation, mend=repair) for route, relation in routes]
    wrong = (report for report in first if report.differing or report.checksum is Keys.DIFFER)
    repairs = tuple(wrong) if repair else ()
    if repairs:
        again = {report.route for report in repairs}
        first = [
            one(route, relation, mend=False) if route.name in again else report
            for (route, relation), report in zip(routes, first, strict=True)
        ]
    return Report(session.pipeline, tuple(first), repairs)
