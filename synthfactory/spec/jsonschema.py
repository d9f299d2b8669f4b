"""The JSON Schema of a spec or training config, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from synthfactory.spec.schema import Spec


def json_schema(form: type[BaseModel] = Spec) -> dict[str, Any]:
    """Draft 2020-12, with a description, default and example of every field."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **form.model_json_schema()}
