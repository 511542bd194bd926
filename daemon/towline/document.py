"""A YAML document with the line of everything in it, and its references replaced.

The YAML is that of version 1.2's core schema, not of 1.1: ``no``, ``on`` and ``2024-01-01`` are strings (a column may
well be called ``no``), ``010`` is ten. Anchors, aliases and merge keys work; duplicate keys and tags are refused.

Messages name keys and lines, never values: a password may stand in any of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from towline import references

#: Where something is in a document: keys and list indices from the root.
Place = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_MOST_NODES = 100_000
_SAFE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,40}\Z")
_QUOTED = re.compile(r"'(?!<)[^']*'|\"[^\"]*\"")  # in PyYAML's messages: a piece of the file, or a '<kind of token>'


class _Loader(yaml.SafeLoader):
    """Composes nodes only; resolves plain scalars as the core schema of YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to replace SafeLoader's


for _name, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"<<$", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong at a place. ``missing_secret``: a reference leads nowhere; else the file itself is wrong."""

    line: int
    place: Place
    text: str
    missing_secret: bool = False


@dataclass(slots=True)
class Document:
    """``data``: plain dicts, lists, strings and numbers. ``lines``: the line (from 1) of each place."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest thing around it that the document has."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def get(self, place: Place) -> Any:
        """What is at a place; None when nothing is."""
        value = self.data
        for step in place:
            try:
                value = value[step]
            except (LookupError, TypeError):
                return None
        return value


def path(place: Place) -> str:
    """``routes[0].select``. A key that does not look like one is not shown: it could be a misplaced secret."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _SAFE_KEY.match(step) else "(a key)")
    return text


def parse(text: str, environment: Mapping[str, str], folder: Path) -> Document:
    """Read a document. Never raises: what is wrong is in ``mistakes``, and as much as can be read in ``data``."""
    document = Document()
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _QUOTED.sub(_unquoted, " ".join(filter(None, (error.context, error.problem))))
        document.mistakes.append(Mistake(mark.line + 1 if mark else 1, (), f"not YAML: {problem}"))
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.mistakes.append(Mistake(line, (), f"not YAML: {error.reason}"))
        return document
    except RecursionError:
        document.mistakes.append(Mistake(1, (), "nested too deeply"))
        return document
    if root is not None:
        document.data = _Builder(document, environment, folder).build(root, (), ())
    return document


@dataclass(slots=True)
class _Builder:
    """Turns nodes into values, noting lines and mistakes."""

    document: Document
    environment: Mapping[str, str]
    folder: Path
    visited: int = 0

    def mistake(self, node: yaml.Node, place: Place, text: str, missing_secret: bool = False) -> None:
        self.document.mistakes.append(Mistake(_line(node), place, text, missing_secret))

    def build(self, node: yaml.Node, place: Place, above: tuple[yaml.Node, ...]) -> Any:
        """The value of a node; ``above``: the nodes around it, to notice an alias to one of them."""
        self.document.lines.setdefault(place, _line(node))
        self.visited += 1
        if any(node is outer for outer in above):
            self.mistake(node, place, "an alias to something that it is itself a part of")
            return None
        if self.visited > _MOST_NODES:
            if self.visited == _MOST_NODES + 1:
                self.mistake(node, place, f"more than {_MOST_NODES} values")
            return None
        inner = (*above, node)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, place, inner)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*place, index), inner) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        self.mistake(node, place, "tags (!…) are not supported")
        return None

    def mapping(self, node: yaml.MappingNode, place: Place, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged.extend(self.merged(value_node, place))
                continue
            key = self.key(key_node, place)
            if key is None:
                continue
            if key in result:
                first = self.document.lines[(*place, key)]
                self.mistake(key_node, (*place, key), f"the key is there twice (first in line {first})")
                continue
            self.document.lines[(*place, key)] = _line(key_node)
            result[key] = self.build(value_node, (*place, key), above)
        for key_node, value_node in merged:
            key = self.key(key_node, place)
            if key is not None and key not in result:
                self.document.lines[(*place, key)] = _line(key_node)
                result[key] = self.build(value_node, (*place, key), above)
        return result

    def key(self, node: yaml.Node, place: Place) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_TAG):
            return str(node.value)
        self.mistake(node, place, "a key must be a plain string")
        return None

    def merged(self, node: yaml.Node, place: Place) -> list[tuple[yaml.Node, yaml.Node]]:
        """The pairs of a merge key's value; of several mappings the first has precedence."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                pairs.extend(pair for pair in source.value if pair[0].tag != _MERGE)
            else:
                self.mistake(source, place, "<< needs an alias of a mapping")
        return pairs

    def scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "merge"):
            return self.string(node, text, place)
        if kind == "null":
            return None
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text)
        except (ValueError, KeyError):
            self.mistake(node, place, f"not a value of the type {kind}")
            return None
        self.mistake(node, place, "tags (!…) are not supported")
        return None

    def string(self, node: yaml.Node, text: str, place: Place) -> str | None:
        try:
            return references.replace(text, self.environment, self.folder)
        except references.ReferenceMalformed as error:
            self.mistake(node, place, str(error))
        except references.ReferenceMissing as error:
            self.mistake(node, place, str(error), missing_secret=True)
        return None


def _unquoted(match: re.Match[str]) -> str:
    """Punctuation may be shown; anything else in quotes may be a piece of a password."""
    return "…" if any(letter.isalnum() for letter in match[0].replace(r"\t", "")) else match[0]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
