"""A JSON schema reduced to what a grammar enforces.

Annotations are dropped: they allow every value. What constrains is kept, written in another way that allows no more
where llguidance lacks the keyword, or refused by its JSON pointer.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from fathom.errors import DataError

_ONE = "not if then else items additionalItems contains additionalProperties propertyNames unevaluatedItems "
_ONE += "unevaluatedProperties contentSchema"
_LISTED = "allOf anyOf oneOf prefixItems items"
_NAMED = "properties patternProperties $defs definitions dependentSchemas dependencies"
_VALUES = """
$schema $id id $ref $anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor $vocabulary $comment
type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern
maxItems minItems uniqueItems maxContains minContains maxProperties minProperties required dependentRequired
format contentEncoding contentMediaType title description default deprecated readOnly writeOnly examples example
"""
_ONE_SCHEMA, _LISTED_SCHEMAS, _NAMED_SCHEMAS = (
    frozenset(_ONE.split()),
    frozenset(_LISTED.split()),
    frozenset(_NAMED.split()),
)
_KEYWORDS = _ONE_SCHEMA | _LISTED_SCHEMAS | _NAMED_SCHEMAS | frozenset(_VALUES.split())
_ANNOTATION_NAMES = """
title description default examples example deprecated readOnly writeOnly $comment $vocabulary
contentEncoding contentMediaType contentSchema
"""
_ANNOTATIONS = frozenset(_ANNOTATION_NAMES.split())
_LONGEST_KEYWORD = max(map(len, _KEYWORDS))
_CHECKED_SPELLINGS = 100
_MOST_ALTERNATIVES = 64
_UNENFORCEABLE: Mapping[str, str] = {
    "not": "list what is allowed by enum or anyOf",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
    "contains": "describe every item by items or prefixItems",
    "dependentRequired": "write the cases as anyOf",
    "dependentSchemas": "write the cases as anyOf",
    "dependencies": "write the cases as anyOf",
    "uniqueItems": "leave it out and drop repeated items yourself",
    "propertyNames": "use properties, or patternProperties",
    "unevaluatedItems": "use items: false",
    "unevaluatedProperties": "use additionalProperties: false",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_FORMATS = frozenset(["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"])
_NARROWER_FORMATS: Mapping[str, str] = {
    "ipvanyaddress": "ipv4",
    "ipvanyinterface": "ipv4",
    "ipvanynetwork": "ipv4",
    "ipv4interface": "ipv4",
    "ipv4network": "ipv4",
    "ipv6interface": "ipv6",
    "ipv6network": "ipv6",
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "uri-reference": "uri",
}
_HEX = "[0-9a-f]"
_LEAP_DAY = "([0-9]{2}([2468][048]|[13579][26]|0[48])|([2468][048]|[13579][26]|0[48])00)-02-29"
_DAYS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"(([1-9][0-9]{{3}}|0[0-9]{{2}}[1-9])-({_DAYS})|{_LEAP_DAY})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_N = "[0-9]{1,4}"  # bounded: readers of dates and durations are
_PERIOD = f"({_N}Y({_N}M)?({_N}D)?|{_N}M({_N}D)?|{_N}D)"
_CLOCK = f"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_DURATION = f"^P({_N}W|{_PERIOD}({_CLOCK})?|{_CLOCK})$"
_FORMAT_PATTERNS: Mapping[str, str] = {
    "duration": _DURATION,
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",  # no leap second, which many readers refuse
    "date-time": f"^{_DATE}T{_TIME}$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in range(1, 9)
    },
    "base64": "^(?:[A-Za-z0-9+/]{4})*$",
    "base64url": "^(?:[A-Za-z0-9_-]{4})*$",
}
_NARROWER_PATTERNS: Mapping[str, str] = {  # zod's, which look around
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    ),
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": _DURATION,
}
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]")
_NOT_ONLY = re.compile(r"\^\(\?!\^?(\[[^\]]+\])\*\$\)(.*)", re.DOTALL)
_DIGITS = re.compile(r"\(\?=\[\\d\.\]\{1,(\d{1,6})\}0\*\$\)(?=\\d\{0,(\d{1,6})\}\\\.\\d\{0,(\d{1,6})\}0\*)")


def enforceable(schema: Mapping[str, Any], where: str = "json_schema", *, lenient: bool = False) -> dict[str, Any]:
    """Return ``schema`` without annotations, and with the rest written as llguidance follows it.

    With ``lenient``, what cannot be enforced is dropped.

    Raises:
        DataError: names by JSON pointer what constrains and cannot be enforced, with the remedy, and what looks like a
            misspelt keyword.
    """
    return _Reducer(schema, where, lenient).schema(schema, "#")


class _Reducer:
    def __init__(self, root: Mapping[str, Any], where: str, lenient: bool) -> None:
        self._root, self._where, self._lenient = root, where, lenient
        self._spellings = _CHECKED_SPELLINGS
        self._definitions: dict[str, Any] = {}

    def any(self, schema: Any, pointer: str) -> Any:
        return self.schema(schema, pointer) if isinstance(schema, Mapping) else schema

    def schema(self, schema: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        reduced: dict[str, Any] = {}
        for keyword, value in schema.items():
            at = f"{pointer}/{_escaped(str(keyword))}"
            if keyword not in _KEYWORDS:
                self._check_spelling(str(keyword), at)
            elif keyword not in _ANNOTATIONS:
                reduced[keyword] = self._inner(keyword, value, at)
        self._rewrite(reduced, pointer)
        for keyword in _UNENFORCEABLE.keys() & reduced.keys():
            self._refuse(f"{pointer}/{keyword}", f"{keyword} cannot be enforced", _UNENFORCEABLE[keyword])
            del reduced[keyword]
        if schema.get("nullable") is True and reduced.get("type") not in (None, "null"):
            return {"anyOf": [reduced, {"type": "null"}]}  # OpenAPI 3.0
        return reduced

    def _inner(self, keyword: str, value: Any, at: str) -> Any:
        if keyword in _NAMED_SCHEMAS and isinstance(value, Mapping):
            return {name: self.any(each, f"{at}/{_escaped(name)}") for name, each in value.items()}
        if keyword in _LISTED_SCHEMAS and isinstance(value, list | tuple):
            return [self.any(each, f"{at}/{index}") for index, each in enumerate(value)]
        return self.any(value, at) if keyword in _ONE_SCHEMA else value

    def _rewrite(self, reduced: dict[str, Any], pointer: str) -> None:
        if reduced.get("uniqueItems") is False or reduced.get("maxItems") in (0, 1):
            reduced.pop("uniqueItems", None)
        if "contains" not in reduced:
            reduced.pop("minContains", None)
            reduced.pop("maxContains", None)
        self._rewrite_unevaluated(reduced)
        if "propertyNames" in reduced:
            self._rewrite_names(reduced)
        if "patternProperties" in reduced:
            reduced.setdefault("additionalProperties", False)  # other names are allowed, but never meant
        if isinstance(reduced.get("oneOf"), list) and self._exclusive(reduced["oneOf"]):
            _also(reduced, {"anyOf": reduced.pop("oneOf")})
        if isinstance(reduced.get("format"), str):
            self._rewrite_format(reduced)
        if isinstance(reduced.get("pattern"), str):
            self._rewrite_pattern(reduced, f"{pointer}/pattern")

    def _exclusive(self, alternatives: list[Any]) -> bool:
        """Whether no value fits two of the alternatives: their types or the constants of a property differ."""
        if len(alternatives) > _MOST_ALTERNATIVES:
            return False
        found = [self._resolved(each) for each in alternatives]
        return all(_disjoint(one, other) for one, other in itertools.combinations(found, 2))

    @staticmethod
    def _rewrite_unevaluated(reduced: dict[str, Any]) -> None:
        combined = reduced.keys() & {"allOf", "anyOf", "oneOf", "$ref", "if"}
        for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if reduced.get(keyword) is True:
                del reduced[keyword]
            elif keyword in reduced and not combined:
                value = reduced.pop(keyword)
                reduced.setdefault(plain, value)

    def _rewrite_names(self, reduced: dict[str, Any]) -> None:
        """Write names of properties as patterns, as dictionaries with keys of a type have them."""
        names = self._resolved(reduced["propertyNames"])
        if isinstance(names, Mapping) and not names.keys() - {"type"}:
            del reduced["propertyNames"]
        elif (pattern := _names_pattern(names)) is not None and not reduced.keys() & {
            "properties",
            "patternProperties",
        }:
            del reduced["propertyNames"]
            reduced["patternProperties"] = {pattern: reduced.get("additionalProperties", True)}
            reduced["additionalProperties"] = False

    def _resolved(self, schema: Any) -> Any:
        """Return the reduced definition that a schema refers to, reduced once; else the schema itself."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        found: Any = self._root
        for step in reference[2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or "$ref" in found:
            return schema
        if reference not in self._definitions:
            self._definitions[reference] = schema  # what a definition that refers to itself sees of itself
            self._definitions[reference] = self.schema(found, reference)
        return self._definitions[reference]

    @staticmethod
    def _rewrite_format(reduced: dict[str, Any]) -> None:
        name = reduced["format"]
        name = _NARROWER_FORMATS.get(name, name)
        if name in _FORMAT_PATTERNS and "pattern" not in reduced:
            del reduced["format"]
            reduced["pattern"] = _FORMAT_PATTERNS[name]
        elif name in _FORMATS:
            reduced["format"] = name
        else:
            del reduced["format"]  # an annotation: any text is allowed

    def _rewrite_pattern(self, reduced: dict[str, Any], at: str) -> None:
        patterns = _plain_patterns(reduced["pattern"])
        if patterns is None:
            self._refuse(at, "a pattern that looks around cannot be enforced", "write it without (?= and (?!")
            del reduced["pattern"]
            return
        reduced["pattern"] = patterns[0]
        for pattern in patterns[1:]:
            _also(reduced, {"pattern": pattern})

    def _check_spelling(self, keyword: str, at: str) -> None:
        if keyword.startswith("x-") or len(keyword) > _LONGEST_KEYWORD + 2 or self._spellings == 0:
            return
        self._spellings -= 1
        meant = difflib.get_close_matches(keyword, _KEYWORDS - _ANNOTATIONS, n=1, cutoff=0.85)
        if meant:
            remedy = f"write {meant[0]} if that is meant, or start it with x-"
            self._refuse(at, f"{keyword!r} is not a keyword of JSON Schema", remedy)

    def _refuse(self, at: str, problem: str, remedy: str) -> None:
        if not self._lenient:
            raise DataError(f"{self._where}{at}: {problem}; {remedy}")


def _also(reduced: dict[str, Any], schema: dict[str, Any]) -> None:
    """Add a schema that must hold too; a malformed allOf is left to the grammar library."""
    given = reduced.setdefault("allOf", [])
    if isinstance(given, list):
        given.append(schema)


def _disjoint(one: Any, other: Any) -> bool:
    """Whether two schemas without references can be seen to share no value."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    if (options := _options(one)) is not None and (others := _options(other)) is not None and not options & others:
        return True
    types, other_types = _types(one), _types(other)
    if types and other_types and not types & other_types:
        return True
    if types != {"object"} or other_types != {"object"}:
        return False
    mine, theirs = _required_properties(one), _required_properties(other)
    return any(_disjoint(mine[name], theirs[name]) for name in mine.keys() & theirs.keys())


def _required_properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return {}
    return {name: properties[name] for name in required if isinstance(name, str) and name in properties}


def _options(schema: Mapping[str, Any]) -> set[str] | None:
    if "const" in schema:
        return {json.dumps(schema["const"], sort_keys=True)}
    listed = schema.get("enum")
    return {json.dumps(each, sort_keys=True) for each in listed} if isinstance(listed, list) else None


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type")
    listed = given if isinstance(given, list) else [given]
    types = {each for each in listed if isinstance(each, str)}
    return types | {"integer"} if "number" in types else types


def _names_pattern(names: Any) -> str | None:
    """Return a pattern of the names that a schema allows, or None where there is none."""
    if not isinstance(names, Mapping):
        return None
    constraints = names.keys() - {"type"}
    listed = names.get("enum", [names["const"]] if "const" in names else None)
    if isinstance(listed, list) and constraints <= {"enum", "const"} and all(isinstance(each, str) for each in listed):
        return f"^({'|'.join(re.escape(each) for each in listed)})$"
    if constraints == {"pattern"} and isinstance(names["pattern"], str):
        return names["pattern"]
    least, most = names.get("minLength", 0), names.get("maxLength", "")
    if constraints and constraints <= {"minLength", "maxLength"} and isinstance(least, int):
        return f"^[^\\n]{{{least},{most}}}$"
    if names.get("format") == "uuid" and constraints == {"format"}:
        return _FORMAT_PATTERNS["uuid4"]
    return None


def _plain_patterns(pattern: str) -> list[str] | None:
    """Return patterns without look-around, all of which a text must match; None where there are none."""
    pattern = _NARROWER_PATTERNS.get(pattern, pattern)
    found = [pattern]
    if starts := _NOT_ONLY.fullmatch(pattern):  # pydantic's decimals: not signs and points alone
        inner = starts[1][1:-1]
        found = [f"^{starts[2]}", f"[^{inner}]" if not inner.startswith("^") else f"[{inner[1:]}]"]
    found[0] = _DIGITS.sub(lambda m: "" if int(m[2]) + int(m[3]) < int(m[1]) else m[0], found[0])
    return None if any(_LOOKS_AROUND.search(each) for each in found) else found


def _escaped(name: str) -> str:
    return json.dumps(name.replace("~", "~0").replace("/", "~1"), ensure_ascii=False)[1:-1][:80]
