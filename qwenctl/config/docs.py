"""Read the docstrings of settings, for the reference and the JSON Schema.

They are read at need: reading them as the models are built (pydantic's
``use_attribute_docstrings``) would cost every command some 30 ms.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from typing import Any

from pydantic import BaseModel

from qwenctl.clouds import registry
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import fields_of
from qwenctl.lib.settings_file import models_in


@cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field that has one, on one line."""
    found: dict[str, str] = {}
    for base in reversed(model.__bases__):
        if base is not BaseModel and issubclass(base, BaseModel):
            found |= descriptions(base)
    for name, field in model.model_fields.items():
        if field.description is not None:
            found[name] = field.description
    tree = ast.parse(inspect.getsource(sys.modules[model.__module__]))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == model.__name__:
            for statement, after in zip(node.body, node.body[1:]):
                if (
                    isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    found[statement.target.id] = str(after.value.value)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in found.items()}


def schema() -> dict[str, Any]:
    """Make the JSON Schema of ``qwenctl.toml``, for editors."""
    result = Config.model_json_schema()
    _add_providers(result["$defs"])
    for model in _models(Config):
        table = result if model is Config else result["$defs"].get(model.__name__, {})
        for name, text in descriptions(model).items():
            if name in table.get("properties", {}):
                table["properties"][name]["description"] = text
    return {
        **result,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qwenctl.toml",
    }


def _add_providers(definitions: dict[str, Any]) -> None:
    """Add the tables of our providers; those of third parties are any tables."""
    gpu = definitions["GpuConfig"]
    gpu["additionalProperties"] = {"type": "object"}
    for name in registry.BUILT_IN:
        table = registry.part(name, "Settings").model_json_schema()
        definitions.update(table.pop("$defs", {}))
        definitions[table["title"]] = table
        reference = f"#/$defs/{table['title']}"
        gpu["properties"][name] = {"$ref": reference, "default": {}}


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Collect a model and all models used in it."""
    found: set[type[BaseModel]] = set()
    left = [model]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            for field in fields_of(one, list(registry.BUILT_IN)).values():
                left += models_in(field.annotation)
    return found
