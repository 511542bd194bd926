"""The pipeline file: YAML, checked, as frozen models. The only reader of the environment.

    config = load(Path("config/erp-to-hub.yaml"))
    config.specs()                            # the routes, with defaults filled in
    config.source.dsn.get_secret_value()      # the only way to a secret; str and repr show asterisks

`load` reports everything that is wrong at once, as ``file:line: path: what was expected (got a type)``. Values are
never part of a message, because any of them may hold a password in the wrong place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from towline import document, wording
from towline.document import Document, Mistake
from towline.errors import ConfigurationInvalid, SecretMissing
from towline.pipeline_file import SECTIONS, DefaultsConfig, PipelineConfig, RouteConfig, impossible

__all__ = ["PipelineConfig", "debug", "json_schema", "load", "notify_socket"]


def load(file: Path | str) -> PipelineConfig:
    """Read and check a pipeline file.

    Raises ConfigurationInvalid, whose detail has a line for each mistake; and SecretMissing when all that is wrong is
    that variables or secret files are missing.
    """
    file = Path(file)
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise ConfigurationInvalid(
            f"{file}: cannot be read: {error.strerror}",
            hint="Name a pipeline file that is there and may be read; `towline init FILE` writes one to start from.",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(f"{file}: not UTF-8, at byte {error.start}") from None
    found = document.parse(text, os.environ, file.parent)
    mistakes = list(found.mistakes)
    if not mistakes or found.data is not None:
        mistakes += _schema_mistakes(found)
        mistakes += _impossible_mistakes(found)
    if mistakes:
        error_class = SecretMissing if all(mistake.missing_secret for mistake in mistakes) else ConfigurationInvalid
        lines = [_printed(file, mistake) for mistake in sorted(mistakes, key=lambda mistake: mistake.line)]
        raise error_class("\n".join(dict.fromkeys(lines)))
    return PipelineConfig.model_validate(found.data)


def notify_socket() -> str:
    """Where systemd wants to be told of the daemon's state; empty when it does not."""
    return os.environ.get("NOTIFY_SOCKET", "")


def debug() -> bool:
    """Whether TOWLINE_DEBUG asks for where in the code an error came from."""
    return os.environ.get("TOWLINE_DEBUG", "") not in ("", "0")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the pipeline file, for editors (``# yaml-language-server: $schema=…``)."""
    schema = PipelineConfig.model_json_schema(by_alias=True)
    for model in (schema, *schema["$defs"].values()):
        for name, property_ in model.get("properties", {}).items():
            property_.pop("title", None)
            if name in ("slot", "publication"):
                property_.pop("default", None)
            if property_.get("type") in ("integer", "number") or "enum" in property_:
                described = {key: property_.pop(key) for key in ("default", "description") if key in property_}
                value = dict(property_)
                property_.clear()
                property_.update({**described, "anyOf": [value, {"type": "string", "pattern": r"\$\{"}]})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Towline pipeline"}


def _impossible_mistakes(found: Document) -> Iterator[Mistake]:
    """The impossible combinations among those parts that are right in themselves."""
    given = found.get(("defaults",))
    given = given if isinstance(given, dict) else {}
    try:
        defaults = DefaultsConfig.model_validate(given)
    except ValidationError as error:
        wrong = {detail["loc"][0] for detail in error.errors(include_input=False)}
        defaults = DefaultsConfig.model_validate({key: value for key, value in given.items() if key not in wrong})
    routes = []
    raw = found.get(("routes",))
    for index, route in enumerate(raw if isinstance(raw, list) else []):
        try:
            routes.append((index, RouteConfig.model_validate(route)))
        except ValidationError:
            continue
    for place, expected in impossible(defaults, routes):
        yield Mistake(found.line(place), place, f"expected {expected}")


def _schema_mistakes(found: Document) -> Iterator[Mistake]:
    try:
        PipelineConfig.model_validate(found.data)
    except ValidationError as error:
        known = {mistake.place for mistake in found.mistakes}
        for detail in error.errors(include_url=False, include_input=False):
            place = detail["loc"]
            value = found.get(place)
            if detail["type"] == "impossible" or (place in known and value is None):
                continue  # reported with a line of its own
            if detail["type"] != "too_short" or not value:  # pydantic does not count the entries that are wrong
                yield Mistake(found.line(place), place, _wording(detail, value))


def _wording(detail: ErrorDetails, value: object) -> str:
    place = detail["loc"]
    if detail["type"] != "extra_forbidden":
        return wording.expected(detail, value)
    model: type[BaseModel] = PipelineConfig
    for step in place[:-1]:
        if isinstance(step, str):
            model = SECTIONS[step]
    return wording.unknown_key(place[-1], [field.alias or name for name, field in model.model_fields.items()])


def _printed(file: Path, mistake: Mistake) -> str:
    where = document.path(mistake.place)
    return f"{file}:{mistake.line}: {where + ': ' if where else ''}{mistake.text}"
