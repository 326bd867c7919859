"""Text to values by YAML 1.2: 010 is ten; 1:30 and yes are text. Aliases are refused, since they can fill the memory."""

import re
from typing import Any

import yaml

FRACTION = re.compile(r"\s*(-?[\d.]+(?:e-?\d+)?)\s*/\s*([\d.]+)\s*", re.IGNORECASE)
LONGEST = 100_000  # most characters of one text


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the core schema of YAML 1.2 (chapter 10.3) in place of YAML 1.1."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not read; write the value once more")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}  # removes those of YAML 1.1
_KINDS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _kind, _pattern in _KINDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), None)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def load(text: str) -> Any:
    """Parse a YAML text. Raises ValueError or yaml.YAMLError if it is invalid or nested too deeply."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_value(value: Any) -> Any:
    """Convert a string from YAML or papermill to its value: fractions such as "8/255", numbers such as "1e-3", lists.

    Other text is returned unchanged, and so is empty text; `null` gives None. Raises ValueError for texts over LONGEST.
    """
    if isinstance(value, list):
        return [read_value(member) for member in value]
    if isinstance(value, dict):
        return {name: read_value(member) for name, member in value.items()}
    if not isinstance(value, str) or not value.strip():
        return value
    if len(value) > LONGEST:
        raise ValueError(f"a text of {len(value):,} characters; at most {LONGEST:,} are read")
    try:
        if match := FRACTION.fullmatch(value):
            return float(match[1]) / float(match[2])
        read = load(value)
    except (yaml.YAMLError, ValueError, ZeroDivisionError):  # ValueError: for example 1.2.3/4
        return value
    return read if isinstance(read, str) else read_value(read)
