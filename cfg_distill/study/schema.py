"""JSON schemas of recipes, studies and metrics files, for editors: they complete and explain keys, and mark wrong ones.

The keys and types are those that the command line checks. Draft 7, which editors of YAML read.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cfg_distill.files.documents import VERSION
from cfg_distill.recipe.calibration import AUTO
from cfg_distill.recipe.keys import keys_of, summary_of, text_of
from cfg_distill.recipe.types import classes_of, members
from cfg_distill.study.config import Study

KINDS = ("recipe", "study", "metrics")
_MODULES = (
    "cfg_distill.generators",
    "cfg_distill.losses",
    "cfg_distill.rewards",
    "cfg_distill.references",
    "cfg_distill.embedders",
    "cfg_distill.data",
    "cfg_distill.callbacks",
    "cfg_distill.metrics",
    "cfg_distill.tunes.metrics",
    "cfg_distill.tunes.embedder",
    "cfg_distill.tunes.reference",
    "cfg_distill.tunes.rewards",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
"""Where recipes find classes; a class from elsewhere is accepted as any text."""
_VERSION = {
    "type": "integer",
    "minimum": 1,
    "maximum": VERSION,
    "description": "of the keys of this file; 1 without it",
}
_ROOTS = ("cfg_distill.", "lightning.", "torch.optim.")
"""Packages whose classes a recipe builds; a value of any other class is not checked."""
_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null", Path: "string"}


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of a kind of file.

    Args:
        kind: one of :data:`KINDS`.
    """
    builder = _Builder(whole=kind == "study")
    root = {"recipe": builder.recipe, "study": builder.study, "metrics": builder.metrics}[kind]()
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"A {kind} of cfg-distill"}
    return head | root | {"definitions": dict(sorted(builder.definitions.items()))}


def text_of_schema(kind: str) -> str:
    """The schema as the text of a file."""
    return json.dumps(schema_of(kind), indent=1, ensure_ascii=False) + "\n"


class _Builder:
    """Collects the definitions that a schema refers to.

    Args:
        whole: whether a file holds everything, so that keys can be required; recipes are merged of several files.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.definitions: dict[str, Any] = {}

    # The files

    def recipe(self) -> dict[str, Any]:
        module, data, trainer = (
            _named(name) for name in ("CFGDistillation", "data.PromptData", "recipe.trainer.NamedTrainer")
        )
        keys = {
            "version": _VERSION,
            "seed_everything": {
                "type": ["integer", "boolean", "null"],
                "description": "seeds what is drawn before the first step",
            },
            "model": self._replaceable(module),
            "data": self._replaceable(data),
            "trainer": self.keys(trainer) | {"patternProperties": {r"\+$": {}}},
            "ckpt_path": {"type": ["string", "null"], "description": "the checkpoint to resume from, or `last`"},
        }
        return {"type": "object", "properties": keys, "additionalProperties": False}

    def study(self) -> dict[str, Any]:
        keys = self.keys(Study)
        return keys | {"properties": {"version": _VERSION} | keys["properties"]}

    def metrics(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.of(_named("metrics.SampleMetric"))}

    def _replaceable(self, cls: type) -> dict[str, Any]:
        """The keys of a class, or another class with its arguments."""
        keys = self.keys(cls)
        other = {"class_path": self._class_path(cls), "init_args": {"type": "object"}}
        chosen = [_then(f"cfg_distill.{path}", self._reference(each)) for path, each in _classes(cls) if each is cls]
        return keys | {"properties": keys["properties"] | other} | ({"allOf": chosen} if chosen else {})

    # Types

    def of(self, hint: Any) -> dict[str, Any]:
        """The schema of a value of a type."""
        options, origin, inside = members(hint), get_origin(hint), get_args(hint)
        if hint is Any or hint is inspect.Parameter.empty:
            return {}
        if len(options) > 1:
            each = [self.of(option) for option in options]
            return {} if {} in each else {"anyOf": [one for n, one in enumerate(each) if one not in each[:n]]}
        if origin is Literal:
            return {"enum": list(inside)}
        if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
            return self._reference(hint)
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            values = self.of(inside[1]) if inside else {}
            # In a later file of a recipe, null removes a name.
            values = values if self.whole or not values else {"anyOf": [values, {"type": "null"}]}
            return {"type": "object", "additionalProperties": values or True}
        if inspect.isclass(origin) and issubclass(origin, Iterable):
            return {"type": "array", "items": self.of(inside[0]) if inside else {}}
        if bases := classes_of(hint):
            specs = [self._spec(base) if base.__module__.startswith(_ROOTS) else {} for base in bases]
            return {} if {} in specs else specs[0] if len(specs) == 1 else {"anyOf": specs}
        return {"type": _PLAIN[hint]} if hint in _PLAIN else {}

    def keys(self, cls: type) -> dict[str, Any]:
        """The keys of a class as an object."""
        is_dataclass = dataclasses.is_dataclass(cls)
        hints = get_type_hints(cls) if is_dataclass else {}
        properties = {}
        for key in keys_of(cls):
            if "." in key.path:
                continue  # inside a dataclass, which has a definition of its own
            value = self.of(hints.get(key.path, key.expected))
            if (cls.__name__, key.path) == ("Evaluation", "metrics"):  # a worker reads them, with torch at hand
                value = {"anyOf": [self.metrics(), {"type": "string"}]}
            if key.path == "weight" and issubclass(cls, _named("losses.Loss")):
                value = {"anyOf": [value, {"const": AUTO}]}
            properties[key.path] = _described(value, text_of(cls, key.path))
        found = {"type": "object", "properties": properties, "additionalProperties": False}
        fields = dataclasses.fields(cls) if is_dataclass and self.whole else ()
        none = dataclasses.MISSING
        required = [each.name for each in fields if each.default is none and each.default_factory is none]
        return found | ({"required": required} if required else {})

    def _reference(self, cls: type) -> dict[str, Any]:
        """The keys of a class, written once."""
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name not in self.definitions:
            self.definitions[name] = {}  # for a class that holds its own kind
            self.definitions[name] = self.keys(cls)
        return {"$ref": f"#/definitions/{name}"}

    def _spec(self, base: type) -> dict[str, Any]:
        """A class of a kind: its path alone, or class_path and init_args. A later file may leave the class out."""
        name = f"kinds of {base.__name__}"
        if name not in self.definitions:
            self.definitions[name] = {}
            known = _classes(base)
            spec = {"class_path": self._class_path(base), "init_args": {"type": ["object", "null"]}}
            chosen = [_then(path, self._reference(cls)) for path, cls in known]
            whole = {"type": "object", "properties": spec} | ({"allOf": chosen} if chosen else {})
            self.definitions[name] = {"anyOf": [self._class_path(base), whole]}
        return {"$ref": f"#/definitions/{name}"}

    @staticmethod
    def _class_path(base: type) -> dict[str, Any]:
        known = [path for path, _ in _classes(base)]
        texts = [{"const": path, "description": summary_of(cls)} for path, cls in _classes(base)]
        return {"anyOf": [*texts, {"type": "string"}]} if known else {"type": "string"}


def _then(path: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a class, where that class is named."""
    named = {"properties": {"class_path": {"const": path}}, "required": ["class_path"]}
    return {"if": named, "then": {"properties": {"init_args": {"anyOf": [keys, {"type": "null"}]}}}}


def _described(value: dict[str, Any], text: str) -> dict[str, Any]:
    """A value with its description; beside a reference, draft 7 reads none."""
    if not text:
        return value
    return {"allOf": [value], "description": text} if "$ref" in value else value | {"description": text}


@cache
def _classes(base: type) -> list[tuple[str, type]]:
    """The concrete classes of a kind in the modules that recipes name, each once."""
    found: dict[type, str] = {}
    for name in _MODULES:
        module = importlib.import_module(name)
        public = vars(module).get("__all__") or [key for key in vars(module) if not key.startswith("_")]
        for key in public:
            cls = getattr(module, key)
            if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls) and cls is not object:
                found.setdefault(cls, f"{name}.{key}")
    return [(path, cls) for cls, path in found.items()]


def _named(name: str) -> Any:
    """A class of this package, by its path in it."""
    module, _, key = f"cfg_distill.{name}".rpartition(".")
    return getattr(importlib.import_module(module), key)
