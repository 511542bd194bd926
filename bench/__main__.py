"""Runs the benchmark: `make bench`.

    python -m bench [run] [--workload NAME]... [--contender NAME]... [--rounds N] [--scale X] [--minutes N]
        [--server 15|18] [--transport socket|tcp] [--variant NAME=PATH=VALUE[,…]]... [--results FILE] [--page FILE]
    python -m bench sweep [NAME]... [--contender NAME]... [the rest as above]
    python -m bench profile WORKLOAD [--contender NAME] [--output FILE] [--server 15|18] [--transport socket|tcp]
    python -m bench list

A run of all workloads with all that take part, and each sweep, writes its part of docs/PERFORMANCE.md and the charts
beside it. Exit code 1: some run does not count.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import page, profiling, sweeper
from bench.contenders import REFERENCE, contenders
from bench.drain import Patience
from bench.results import Kept
from bench.runner import Plan, Runner
from bench.servers import Servers
from bench.sweeper import SweepRunner
from bench.sweeps import SWEEPS
from bench.workloads import WORKLOADS
from towline.demo.scratch import Scratch

PAGE = Path(__file__).parents[1] / "docs" / "PERFORMANCE.md"


def main(arguments: Sequence[str]) -> int:
    """See the module. Returns the exit code."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    options = _parser().parse_args(arguments)
    command: str = options.command
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # with servers and daemons ended
    commands = {"list": _list, "run": _run, "sweep": _sweep, "profile": _profile}
    return commands[command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure the workloads (the default)")
    running.add_argument(
        "--workload", action="append", default=[], metavar="NAME", help="only these: W1, W5/500, idle…"
    )
    running.add_argument("--contender", action="append", default=[], metavar="NAME", help="only these, see `list`")
    running.add_argument("--rounds", type=int, default=3, help="each contender has its turn in each")
    running.add_argument("--scale", type=float, default=1.0, help="of every workload's size, live ones' seconds too")
    running.add_argument("--minutes", type=float, default=40.0, help="begin no second round beyond a workload's share")
    running.add_argument("--note", default="", help="a sentence about the run, for the page")
    sweeping = commands.add_parser("sweep", help="measure how cost grows")
    sweeping.add_argument("sweeps", nargs="*", metavar="NAME", help=f"only these: {', '.join(SWEEPS)}")
    sweeping.add_argument(
        "--contender", action="append", default=[], metavar="NAME", help="instead of Towline, built-in"
    )
    sweeping.add_argument("--rounds", type=int, default=1, help="each contender has its turn in each")
    sweeping.add_argument("--scale", type=float, default=1.0, help="of the number of rows")
    sweeping.add_argument("--minutes", type=float, default=40.0, help="begin no point beyond a sweep's share")
    profiled = commands.add_parser("profile", help="one run, and where its time goes")
    profiled.add_argument("workload", choices=WORKLOADS)
    profiled.add_argument("--contender", default="towline", metavar="NAME")
    profiled.add_argument("--scale", type=float, default=1.0, help="of the workload's size")
    profiled.add_argument("--output", type=Path, help="put py-spy's samples there, for a flame graph")
    for each in (running, sweeping, profiled, commands.add_parser("list", help="name workloads and contenders")):
        each.add_argument("--variant", action="append", default=[], metavar="NAME=PATH=VALUE[,…]", help="of Towline")
    for each in (running, sweeping, profiled):
        each.add_argument("--timeout", type=float, default=900.0, help="of one run, in seconds")
        each.add_argument(
            "--quiet", type=float, default=20.0, help="seconds to wait for a quiet machine before each run"
        )
        each.add_argument("--server", type=int, choices=(15, 18), default=15, help="Debian's 15, or 18 from the wheel")
        each.add_argument("--transport", choices=("socket", "tcp"), default="socket", help="how contenders connect")
    for each in (running, sweeping):
        each.add_argument("--results", type=Path, help="keep results there; those that are there are not run again")
        each.add_argument("--page", type=Path, help="write there (a whole run's default is docs/PERFORMANCE.md)")
    return parser


def _list(options: argparse.Namespace) -> int:
    everyone = contenders(options.variant)
    for workload in WORKLOADS.values():
        print(f"{workload.name:10}{workload.size:>10,} {workload.unit}: {workload.title}")
    print()
    for contender in everyone.values():
        taken = " ".join(name for name, workload in WORKLOADS.items() if contender.takes(workload))
        missing = contender.missing()
        print(f"{contender.name:20} {contender.title} ({taken}){f' — left out: {missing}' if missing else ''}")
    return 0


def _run(options: argparse.Namespace) -> int:
    everyone = contenders(options.variant)
    unknown = [name for name in options.contender if name not in everyone]
    unknown += [name for name in options.workload if name not in WORKLOADS]
    if unknown:
        print(f"there is no {', '.join(unknown)}: see `python -m bench list`", file=sys.stderr)
        return 2
    plan = Plan(
        workloads=[WORKLOADS[name] for name in options.workload or WORKLOADS],
        contenders=[everyone[name] for name in options.contender or everyone],
        chosen=bool(options.contender),
        rounds=options.rounds,
        scale=options.scale,
        minutes=options.minutes,
        patience=Patience(options.timeout, options.quiet),
    )
    kept = Kept(options.results)
    with Scratch() as directory, Servers.made(directory, options.server, options.transport) as servers:
        runner = Runner(servers, directory, plan, kept)
        runner.run()
        machine = page.Machine.here(servers)
    whole = not (options.contender or options.workload)
    path = options.page or (PAGE if whole else None)
    if path is not None:
        page.write_runs(path, machine, runner.results, everyone, options.note)
    print()
    print(page.tables(runner.results, everyone))
    return 1 if any(result.failure for result in runner.results) else 0


def _sweep(options: argparse.Namespace) -> int:
    everyone = contenders(options.variant)
    names = options.contender or [
        REFERENCE,
        "towline",
        *("towline-" + text.split("=", 1)[0] for text in options.variant),
    ]
    unknown = [name for name in options.sweeps if name not in SWEEPS] + [name for name in names if name not in everyone]
    if unknown:
        print(f"there is no {', '.join(unknown)}: see `python -m bench list`", file=sys.stderr)
        return 2
    sweeps = [SWEEPS[name] for name in options.sweeps or SWEEPS]
    began = time.monotonic()
    with Scratch() as directory, Servers.made(directory, options.server, options.transport) as servers:
        runner = SweepRunner(
            servers,
            directory,
            [everyone[name] for name in names],
            Kept(options.results),
            rounds=options.rounds,
            scale=options.scale,
            patience=Patience(options.timeout, options.quiet),
        )
        for number, sweep in enumerate(sweeps, 1):
            runner.run(sweep, began + options.minutes * 60 * number / len(sweeps))
        machine = page.Machine.here(servers)
    path = options.page or (PAGE if not options.contender else None)
    for sweep in sweeps:
        found = sweeper.of(sweep, runner.results)
        print(f"\n{sweep.title}\n\n{sweeper.table(sweep, found, everyone)}")
        if path is not None:
            page.write_sweep(path, machine, sweep, found, everyone)
    return 1 if any(result.failure for result in runner.results) else 0


def _profile(options: argparse.Namespace) -> int:
    everyone = contenders(options.variant)
    contender = everyone.get(options.contender)
    workload = WORKLOADS[options.workload]
    if contender is None or not contender.can(workload):
        print(f"{options.contender} cannot do {workload.name}: see `python -m bench list`", file=sys.stderr)
        return 2
    patience = Patience(options.timeout, options.quiet)
    more = profiling.SETTINGS
    with Scratch() as directory, Servers.made(directory, options.server, options.transport, more) as servers:
        result = profiling.profile(servers, directory, workload, contender, options.scale, patience, options.output)
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
