"""What a setting may be, in words for people: read off the JSON Schema of the settings."""

from typing import Any


def expected(path: str, schema: dict[str, Any]) -> str:
    node = schema
    for part in path.split("."):
        node = node["properties"][part]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return _describe(node)


def _describe(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema of a leaf allows."""
    match schema:
        case {"anyOf": options}:
            said = " or ".join(_describe(option) for option in options)
        case {"const": value}:
            said = str(value)
        case {"enum": values}:
            said = "one of " + ", ".join(map(str, values))
        case {"type": "array", "items": items}:
            said = f"a list of {'at least one ' if 'minItems' in schema else ''}{_describe(items)}"
        case {"type": "object", "additionalProperties": {"type": "object"}}:
            said = "a map of names to maps of names to strings (quote numbers)"
        case {"type": "object", "additionalProperties": {"type": "integer"} as items}:
            said = f"a map of names to numbers, each {_describe(items)}"
        case {"type": "object"}:
            said = "a map of names to strings (quote numbers)"
        case _:
            said = _describe_scalar(schema)
    return said


def _describe_scalar(schema: dict[str, Any]) -> str:
    kinds = {"integer": "an integer", "number": "a number", "null": "null"}
    kind = "a path" if schema.get("format") == "path" else kinds.get(schema["type"], "a string")
    signs = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "minLength": "of length >=",
        "pattern": "like",
    }
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)
    return f"{kind} {bounds}".strip()
