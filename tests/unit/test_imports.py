"""Who may import whom: stated here, once, and true of every module. docs/ARCHITECTURE.md says the same in prose."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
ROOTS = {"towline": TOP / "daemon" / "towline", "towline_transforms": TOP / "transforms" / "towline_transforms"}

#: Modules through which a program reaches the world, or learns the time.
OUTSIDE = (
    *("socket", "ssl", "select", "selectors", "asyncio", "http", "urllib"),
    *("subprocess", "multiprocessing", "threading", "concurrent"),
    *("os", "io", "pathlib", "shutil", "tempfile", "signal", "sys", "time", "random", "secrets", "logging", "psycopg"),
)


@dataclass(frozen=True)
class Rule:
    """``who`` (modules, or packages with all in them) may not import ``whom``.

    ``unless``: names (module.name) that they may. ``but``: those among ``who`` that may. ``deep``: nor
    may what they import of the project.
    """

    why: str
    who: tuple[str, ...]
    whom: tuple[str, ...]
    unless: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    deep: bool = False


#: What people type, and what shows it to them.
FRONT = ("towline.cli", "towline.demo", "towline.__main__")

RULES = (
    Rule("routes and their SQL are pure", ("towline_transforms",), ("towline", *OUTSIDE)),
    Rule(
        "decoders turn bytes into messages: no I/O, no driver, no log, no clock",
        (
            *(
                f"towline.source.postgres.{name}"
                for name in ("pgoutput", "streamed", "wal2json", "tuples", "copy_rows")
            ),
            *(
                "towline.frame",
                "towline.columns",
                "towline.change",
                "towline.compact",
                "towline.key_sum",
                "towline.position",
            ),
        ),
        OUTSIDE,
        deep=True,
    ),
    Rule(
        "decisions are made apart from I/O",
        (
            "towline.snapshot",
            "towline.lag",
            "towline.start_checks",
            "towline.streaming",
            "towline.catch_up",
            "towline.silent_line",
        ),
        OUTSIDE,
        deep=True,
    ),
    Rule("a source knows no target", ("towline.source",), ("towline.target",)),
    Rule(
        "a target knows no source, but which database its checkpoint belongs to",
        ("towline.target",),
        ("towline.source",),
        unless=("towline.source.Identity", "towline.source.Step"),
    ),
    Rule(
        "what both ends share knows neither",
        ("towline.postgres",),
        ("towline.source", "towline.target", "towline.pipeline", "towline.config"),
    ),
    Rule(
        "the loop knows contracts, not databases",
        ("towline.pipeline", "towline.snapshot", "towline.chunk_reader"),
        ("psycopg", "towline.postgres", "towline.source.postgres", "towline.target.postgres", "towline.config"),
    ),
    Rule("below the command line nobody prints or parses arguments", ("towline",), ("click",), but=FRONT),
    Rule("below the command line nobody imports it", ("towline",), ("towline.cli",), but=FRONT),
    Rule("the demo is for the command line", ("towline",), ("towline.demo",), but=FRONT),
    Rule(
        "what is installed does not need what tests need",
        ("towline", "towline_transforms"),
        ("pytest", "tests", "bench"),
    ),
)


@dataclass(frozen=True)
class Import:
    """``what`` is a module, or a module and a name in it; ``late``: inside a function or for type checkers only."""

    what: str
    line: int
    late: bool


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the project, parsed."""
    found = {}
    for name, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = [name, *path.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports, wherever in it."""
    return tuple(_walk(sources()[module], late=False))


def _walk(node: ast.AST, *, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            yield from (Import(f"{child.module}.{alias.name}", child.lineno, late) for alias in child.names)
        else:
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, late=late or typing_only or inside)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def module_of(what: str) -> str | None:
    """The project's module that an import runs, if it is one."""
    return what if what in sources() else what.rpartition(".")[0] if what.rpartition(".")[0] in sources() else None


def reachable(module: str) -> set[str]:
    """The module with all of the project that importing it runs."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += [found for each in imports(here) if not each.late and (found := module_of(each.what))]
    return seen


def breaches(rule: Rule) -> Iterator[str]:
    """Every import that breaks the rule."""
    for module in sources():
        if not within(module, rule.who) or within(module, rule.but):
            continue
        for each in sorted(reachable(module)) if rule.deep else [module]:
            for found in imports(each):
                if within(found.what, rule.whom) and found.what not in rule.unless:
                    through = "" if each == module else f" (through {each})"
                    yield f"{module}{through}, line {found.line}: {found.what}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.why)
def test_rule(rule: Rule) -> None:
    """No module breaks it, and it is about modules that exist."""
    for name in rule.who:
        assert any(within(module, (name,)) for module in sources()), f"no module {name}"
    assert list(breaches(rule)) == []


def test_there_are_no_cycles() -> None:
    """Modules can be read in an order in which each uses only what was read before."""
    graph = {
        module: {found for each in imports(module) if not each.late and (found := module_of(each.what))} - {module}
        for module in sources()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]), pytrace=False)


def test_only_the_configuration_reads_the_environment() -> None:
    """Every setting is in the pipeline file, which may refer to a variable: none acts from afar."""
    readers = [
        f"{module}, line {node.lineno}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    ]
    assert [reader for reader in readers if not reader.startswith("towline.config,")] == []


def test_a_breach_is_seen() -> None:
    """The rules can fail: what the daemon does import is found when it is forbidden."""
    assert list(breaches(Rule("", ("towline.supervisor",), ("signal",))))
    assert list(breaches(Rule("", ("towline.pipeline",), ("enum",), deep=True)))
    assert not list(breaches(Rule("", ("towline.pipeline",), ("enum",))))
