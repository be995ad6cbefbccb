"""Where a fault can be planted in a Python file, and planting it.

cosmic-ray's operators do the work, on parso's trees. Of its families one replacement a place is kept, the one that is
hardest to notice: ``+`` becomes ``-`` and not each of eleven others, ``<`` becomes ``<=``. A sample would otherwise
consist of arithmetic that fails at once, and of ``==`` against ``is``. Three operators are added: statements that act
(calls, raises, assignments to attributes and items) disappear, keyword arguments disappear, results become ``None``;
and one is replaced, that of ``except``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import parso
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Name

from mutants.site import Site

Node = Any
"""A node or leaf of parso's tree, whose attributes are not typed."""

KEPT = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "RShift_LShift", "LShift_RShift")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")),
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
)
LOGGERS = frozenset({"logger", "log", "_logger", "_log"})
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
TYPING_DECORATORS = frozenset({"overload", "override", "final", "abstractmethod", "runtime_checkable"})


def _span(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    return node.start_pos, node.end_pos


class RemoveStatement(Operator):  # type: ignore[misc]
    """A statement that acts (a call, a raise, an assignment to an attribute or an item) becomes ``pass``."""

    def mutation_positions(self, node: Node) -> Iterator[Any]:
        if node.type == "simple_stmt" and _acts(node.children[0]):
            yield _span(node.children[0])

    def mutate(self, node: Node, index: int) -> Node:
        prefix = node.get_first_leaf().prefix
        node.children[0] = Name("pass", node.start_pos, prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x.close()", "pass"), Example("self.a = 1", "pass"), Example("raise E() from None", "pass"))


class RemoveKeywordArgument(Operator):  # type: ignore[misc]
    """A call is made without one of its keyword arguments, but not without the name of a thread or of a task."""

    def mutation_positions(self, node: Node) -> Iterator[Any]:
        # All before the first is yielded: `mutate` changes the children between two of them.
        yield from [_span(node.children[place]) for place in self._places(node)]

    def mutate(self, node: Node, index: int) -> Node:
        place = self._places(node)[index]
        followed = place + 1 < len(node.children) and _code(node.children[place + 1]) == ","
        # The comma behind goes too, or the one before when this is the last.
        first, last = (place, place + 2) if followed or node.type == "trailer" else (place - 1, place + 1)
        del node.children[first : last if node.type == "arglist" else place + 1]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(a=1)", "f()"), Example("f(x, a=1)", "f(x)"), Example("f(a=1, b=2)", "f( b=2)"))

    @staticmethod
    def _places(node: Node) -> list[int]:
        if node.type not in ("arglist", "trailer"):
            return []
        return [
            place
            for place, child in enumerate(node.children)
            if child.type == "argument"
            and _code(child.children[0]) not in ("*", "**")
            and _code(child.children[1]) == "="
            and _code(child.children[0]) != "encoding"  # the tests run where it is the default
            and not (_code(child.children[0]) == "name" and _makes_thread_or_task(node))
        ]


class ReturnNone(Operator):  # type: ignore[misc]
    """A function returns None in place of its result."""

    def mutation_positions(self, node: Node) -> Iterator[Any]:
        if node.type == "return_stmt" and _code(node.children[1]) != "None":
            yield _span(node)

    def mutate(self, node: Node, index: int) -> Node:
        node.children[1:] = [Name("None", node.children[1].start_pos, " ")]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("def f(): return 1", "def f(): return None"),)


class ExceptionReplacer(Operator):  # type: ignore[misc]
    """An ``except`` names something else in place of one exception; cosmic-ray's own knows no dotted names."""

    def mutation_positions(self, node: Node) -> Iterator[Any]:
        yield from [_span(parent.children[place]) for parent, place in self._places(node)]

    def mutate(self, node: Node, index: int) -> Node:
        parent, place = self._places(node)[index]
        replaced = parent.children[place]
        parent.children[place] = Name("CosmicRayTestingException", replaced.start_pos, replaced.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("try: pass\nexcept a.B: pass", "try: pass\nexcept CosmicRayTestingException: pass"),)

    @staticmethod
    def _places(node: Node) -> list[tuple[Node, int]]:
        """Of the names of exceptions: the node that each stands in, and its place there."""
        if node.type != "except_clause":
            return []
        caught = node.children[1]
        if caught.type != "atom":
            return [(node, 1)]
        within = caught.children[1]
        return (
            [(within, place) for place in range(0, len(within.children), 2)] if within.type == "testlist_comp" else []
        )


OURS = {each.__name__: each for each in (RemoveStatement, RemoveKeywordArgument, ReturnNone, ExceptionReplacer)}


@cache
def operators() -> dict[str, Operator]:
    """All operators that are used, by name."""
    provider = OperatorProvider()
    chosen: dict[str, Callable[[], Operator]] = {name: provider[name] for name in KEPT} | OURS
    return {name: made() for name, made in chosen.items()}


def python_sites(path: str, source: str) -> list[Site]:
    """All places in a file, without those that cannot matter by construction (see `cannot_matter`)."""
    sites: list[Site] = []
    seen = dict.fromkeys(operators(), 0)
    for node in _nodes(parso.parse(source)):
        for name, operator in operators().items():
            for start, end in operator.mutation_positions(node):
                # Counted in the order in which cosmic-ray's own visitor counts.
                occurrence, seen[name] = seen[name], seen[name] + 1
                if not cannot_matter(node):
                    last = end[0] - (end[1] == 0 and end[0] > start[0])
                    sites.append(Site(path=path, line=start[0], end_line=last, operator=name, place=occurrence))
    return sites


def plant_python(source: str, site: Site) -> str | None:
    """The file's text with the fault; None when that is no program or the same one."""
    planted = mutate_code(source, operators()[site.operator], site.place)
    if planted is None:
        return None
    try:
        same = ast.dump(ast.parse(planted)) == ast.dump(ast.parse(source))
        compile(planted, site.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return None if same else str(planted)


def cannot_matter(node: Node) -> bool:
    """Whether a fault here changes nothing that runs, or only the text of a log.

    Annotations, ``TypeVar(…)``, ``if TYPE_CHECKING``, ``__all__``, calls of a logger, decorators that only type
    checkers read, the ``*`` before keyword-only parameters and the arguments of ``@dataclass`` (frozen, kw_only), which
    hold callers to a style that mypy checks. Defaults of parameters are reached through the parameters' own nodes. What
    a thread or an asyncio task is called, which only debuggers show, is left alone by `RemoveKeywordArgument`.
    """
    child, parent = node, node.parent
    if _is_typing_only(node) or node.type in ("parameters", "param") or (parent and parent.type == "parameters"):
        return True
    while parent is not None:
        if _is_annotation_of(parent, child) or _is_typing_only(parent):
            return True
        child, parent = parent, parent.parent
    return False


def _is_annotation_of(parent: Node, child: Node) -> bool:
    if parent.type == "annassign":
        return child is parent.children[1]
    if parent.type == "tfpdef":
        return child is parent.children[-1]
    return bool(parent.type == "funcdef" and child is parent.annotation)


def _is_typing_only(node: Node) -> bool:
    match node.type:
        case "if_stmt":
            return _code(node.children[1]) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        case "expr_stmt":
            return _code(node.children[0]) == "__all__"
        case "simple_stmt":
            return _is_typing_only(node.children[0])
        case "atom_expr":
            called = [_code(child) for child in node.children[:2]]
            return called[0] == "TypeVar" or (called[0] in LOGGERS and called[1].lstrip(".") in LEVELS)
        case "decorator":
            return _decorator_name(node) in TYPING_DECORATORS
        case "trailer":
            decorator = node.parent.parent if node.parent is not None else None
            return decorator is not None and decorator.type == "decorator" and _decorator_name(decorator) == "dataclass"
    return False


def _decorator_name(decorator: Node) -> str:
    return _code(decorator.children[1]).partition("(")[0].rpartition(".")[2]


def _makes_thread_or_task(arguments: Node) -> bool:
    """Whether arguments, or the trailer that holds them, are those of ``Thread(…)`` or ``….create_task(…)``."""
    trailer = arguments if arguments.type == "trailer" else arguments.parent
    called = trailer.get_previous_sibling() if trailer is not None and trailer.type == "trailer" else None
    return called is not None and _code(called).rpartition(".")[2] in ("Thread", "create_task")


def _acts(statement: Node) -> bool:
    match statement.type:
        case "raise_stmt":
            return True
        case "atom_expr":
            return _code(statement.children[-1]).startswith("(")
        case "expr_stmt":
            target, sign = statement.children[0], statement.children[1]
            return bool(target.type == "atom_expr" and sign.type != "annassign")
    return False


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def _code(node: Node) -> str:
    return str(node.get_code(include_prefix=False))
