"""Does a value meet a JSON Schema (Draft 2020-12)? Within bounds, and told without quoting the value.

Template authors write the schema and others the value, so neither may hold the process up:

- every keyword that is applied is counted, the keywords that look at all items or properties by how many these are;
- patterns are searched by RE2, as those of CEL and of Kubernetes are: in a time that the text's length bounds, while
  other threads run. With `re` forty characters can take for ever, and nothing can interrupt it;
- the library puts the value into the texts of its faults, a million characters if it has them: here it gets to see one
  that shows nothing of itself;
- nothing is ever fetched: a reference that the document itself does not resolve was refused with the template.

Imported only when there is a schema to apply: `tasker.model.schemas` is the door.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from tasker.model.validation import json_type

POINTER_CHARACTERS = 120
REASON_CHARACTERS = 120
"""With both a fault fits into 256 characters, as a Task's condition has; what is longer ends with an ellipsis."""

FAULTS_WEIGHED = 32
"""Of so many first faults the most telling one is told: a long list of wrong items has thousands of the same kind."""

VALIDATORS_KEPT = 64
"""A schema is at most 64 KiB of text, a few times that when it is parsed."""

PATTERNS_KEPT = 64
PATTERN_BYTES = 524_288
"""For RE2: of a compiled pattern with what it remembers while it searches."""
STEPS_PER_CHECK = 500
"""RE2 takes at most one step an instruction and character, some nanoseconds each, and mostly far fewer."""

Faults = Iterator[ValidationError]
Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError]]


class Unfinished(Exception):
    """The check was given up: it took more than it may."""


@dataclass
class Effort:
    """What one check may still take, in keywords applied."""

    checks: int

    def spend(self, checks: int) -> None:
        """Raises `Unfinished` when nothing is left."""
        self.checks -= checks
        if self.checks < 0:
            raise Unfinished

    def finds(self, pattern: str, text: str) -> bool:
        """Whether the pattern is somewhere in the text. Raises `Unfinished`."""
        compiled = compiled_pattern(pattern)
        self.spend(compiled.programsize * len(text) // STEPS_PER_CHECK)
        return compiled.search(text) is not None


@lru_cache(maxsize=PATTERNS_KEPT)
def compiled_pattern(pattern: str) -> Any:
    """The pattern for RE2. Raises `re2.error`."""
    options = re2.Options()
    options.max_mem = PATTERN_BYTES
    options.log_errors = False
    return re2.compile(pattern, options)


_effort: ContextVar[Effort] = ContextVar("effort")


def first_fault(schema: Mapping[str, Any], value: Any, effort: Effort) -> tuple[str, str] | None:
    """The JSON pointer (RFC 6901) into `value` and the reason of its most telling fault; None when it meets `schema`.

    The same fault for the same schema and value. Raises `Unfinished` when `effort` does not do.
    """
    try:
        faults = _faults(_validator(json.dumps(schema)), value, effort)
    except OverflowError:
        return "", "holds a number that is too large for `multipleOf`"
    if not faults:
        return None
    fault = most_telling(faults)
    pointer = "".join(f"/{_escaped(part)}" for part in [*fault.absolute_path, *_missing(fault)])
    return _cut(pointer, POINTER_CHARACTERS), _cut(reason_of(fault), REASON_CHARACTERS)


def first_fault_of_form(schema: Mapping[str, Any], effort: Effort) -> tuple[list[str | int], str] | None:
    """The place and the reason of the most telling fault of what should be a schema; None when it is one.

    Raises `Unfinished` when `effort` does not do.
    """
    faults = _faults(_schema_of_schemas(), schema, effort)
    if not faults:
        return None
    fault = most_telling(faults)
    return [*fault.absolute_path, *_missing(fault)], _cut(reason_of(fault), REASON_CHARACTERS)


def _faults(validator: Any, value: Any, effort: Effort) -> list[ValidationError]:
    token = _effort.set(effort)
    try:
        return list(islice(validator.iter_errors(_silent(value)), FAULTS_WEIGHED))
    except RecursionError:  # by a long chain of references
        raise Unfinished from None
    finally:
        _effort.reset(token)


def most_telling(faults: Iterable[ValidationError]) -> ValidationError:
    """The fault nearest to the top, the first of equals; one of alternatives last, for it says least.

    Of alternatives that failed, those for another type of value are put aside; when one alternative alone fits best
    (its fault lies deepest), its fault is told.
    """
    fault = min(faults, key=lambda each: (len(each.path), each.validator in {"anyOf", "oneOf"}))
    while fault.context:
        others = {each.schema_path[0] for each in fault.context if each.validator == "type" and not each.path}
        fitting = [each for each in fault.context if each.schema_path[0] not in others]
        depth = max((len(each.path) for each in fitting), default=0)
        deepest = [each for each in fitting if len(each.path) == depth]
        if len({each.schema_path[0] for each in deepest}) != 1:
            break
        fault = deepest[0]
    return fault


def reason_of(fault: ValidationError) -> str:
    """What is wrong, in the schema's words; of the value no more than its type."""
    keyword, limit = fault.validator, fault.validator_value
    match keyword:
        case "type":
            types = [limit] if isinstance(limit, str) else limit
            return f"must be {' or '.join(_TYPES.get(each, str(each)) for each in types)}, not {_kind(fault.instance)}"
        case "required":
            return "is required"
        case "additionalProperties":
            return "is not a known property"
        case "enum":
            return f"must be one of {', '.join(_shown(each) for each in limit)}"
        case "const":
            return f"must be {_shown(limit)}"
        case "minLength" | "minItems" | "minProperties" if limit == 1:
            return "must not be empty"
        case "pattern":
            return f"does not match the pattern {limit}"
        case None:
            return "is not allowed"
        case _ if keyword in _BOUNDS:
            return _BOUNDS[keyword].format(_shown(limit))
        case _:
            return _RULES.get(keyword, f"does not meet `{keyword}`")


def _kind(value: Any) -> str:
    return "one with a fraction" if isinstance(value, float) and not value.is_integer() else json_type(value)


_TYPES = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "an object",
}

_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "is shorter than {} characters",
    "maxLength": "is longer than {} characters",
    "minItems": "has fewer than {} items",
    "maxItems": "has more than {} items",
    "minProperties": "has fewer than {} properties",
    "maxProperties": "has more than {} properties",
}

_RULES = {
    "anyOf": "meets none of the alternatives of `anyOf`",
    "oneOf": "does not meet exactly one of the alternatives of `oneOf`",
    "not": "meets the schema that `not` excludes",
    "uniqueItems": "holds an item twice",
    "contains": "does not hold as many items as `contains` asks for",
    "propertyNames": "has a name that `propertyNames` does not allow",
    "dependentRequired": "lacks a property that another one needs",
    "unevaluatedProperties": "has a property that the schema does not know",
    "unevaluatedItems": "has an item that the schema does not know",
}


class _SilentObject(dict[str, Any]):
    def __repr__(self) -> str:
        return "an object"


class _SilentList(list[Any]):
    def __repr__(self) -> str:
        return "a list"


class _SilentText(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "a string"


def _silent(value: Any) -> Any:
    """The value, for the library's eyes: equal to it, and showing nothing of itself. Counted as it is made."""
    _effort.get().spend(1)
    if isinstance(value, dict):
        return _SilentObject({name: _silent(item) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        return _SilentList(map(_silent, value))
    return _SilentText(value) if isinstance(value, str) else value


def _missing(fault: ValidationError) -> list[str]:
    """The name of the property that is not there. It is the schema's word, and the pointer should end with it."""
    if fault.validator != "required":
        return []
    return [name for name in fault.validator_value if name not in fault.instance][:1]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@lru_cache(maxsize=VALIDATORS_KEPT)
def _validator(schema: str) -> Any:
    """By the schema's text. The empty registry is what keeps references from being fetched."""
    return _counting_validators()(json.loads(schema), registry=Registry())


@cache
def _schema_of_schemas() -> Any:
    return _counting_validators()(Draft202012Validator.META_SCHEMA, registry=Registry())


@cache
def _counting_validators() -> Any:
    own: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "propertyNames": _property_names,
        "uniqueItems": _unique_items,
    }
    keywords = {**Draft202012Validator.VALIDATORS, **own}
    counting: Any = extend(Draft202012Validator, {name: _counted(name, keyword) for name, keyword in keywords.items()})
    fields = [(each.name, each.alias) for each in counting.__attrs_attrs__ if each.init]

    def evolve(validator: Any, **changes: Any) -> Any:
        """As the library's, which goes on with another class where it meets `$schema`: one that counts nothing."""
        return counting(**{alias: getattr(validator, name) for name, alias in fields} | changes)

    library_descend = counting.descend

    def descend(
        validator: Any, instance: Any, schema: Any, path: Any = None, schema_path: Any = None, **more: Any
    ) -> Faults:
        """As the library's, which forgets where it is when the schema is false."""
        if schema is not False:
            yield from library_descend(validator, instance, schema, path, schema_path, **more)
            return
        yield ValidationError(
            "false",
            validator=None,
            path=() if path is None else (path,),
            schema_path=() if schema_path is None else (schema_path,),
            instance=instance,
            schema=schema,
        )

    counting.evolve, counting.descend = evolve, descend
    return counting


def _counted(name: str, keyword: Keyword) -> Keyword:
    def check(validator: Any, limit: Any, instance: Any, schema: Any) -> Iterable[ValidationError]:
        _effort.get().spend(_cost(name, limit, instance))
        return keyword(validator, limit, instance, schema)

    return check


def _cost(name: str, limit: Any, instance: Any) -> int:
    """About how many steps the keyword takes by itself; what it descends into is counted there."""
    each = 1 + len(limit) if isinstance(limit, (list, dict)) else 1
    if not isinstance(instance, (list, dict)):
        return each
    match name:
        case "patternProperties" | "additionalProperties" | "uniqueItems":
            return each * (1 + len(instance))
        case "unevaluatedProperties" | "unevaluatedItems":
            return each + len(instance) ** 2 // 64  # looks each up in a list of those that were evaluated
        case _:
            return each


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Faults:
    if isinstance(instance, str) and not _effort.get().finds(pattern, instance):
        yield ValidationError("pattern")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any) -> Faults:
    if not isinstance(instance, dict):
        return
    for pattern, schema in patterns.items():
        for name, value in instance.items():
            if _effort.get().finds(pattern, name):
                yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, others: Any, instance: Any, schema: Mapping[str, Any]) -> Faults:
    """In the order of the value, where the library's own takes a random one."""
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in known or any(_effort.get().finds(pattern, name) for pattern in patterns):
            continue
        if others is False:
            yield ValidationError("additionalProperties", path=(name,))
        else:
            yield from validator.descend(value, others, path=name)


def _property_names(validator: Any, schema: Any, instance: Any, _schema: Any) -> Faults:
    if isinstance(instance, dict):
        for name in instance:
            if any(validator.descend(name, schema)):
                yield ValidationError("propertyNames", path=(name,))


def _unique_items(_validator: Any, unique: bool, instance: Any, _schema: Any) -> Faults:
    """By the items' text, in linear time."""
    if unique and isinstance(instance, list):
        texts = {json.dumps(_as_compared(item), sort_keys=True) for item in instance}
        if len(texts) < len(instance):
            yield ValidationError("uniqueItems")


def _as_compared(value: Any) -> Any:
    """With numbers of one value written one way: JSON Schema holds 1.0 and 1 for equal."""
    if isinstance(value, dict):
        return {name: _as_compared(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_compared(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
