"""What is planted in Python, and what is not because it cannot matter."""

from __future__ import annotations

import textwrap

import pytest

from mutants.python_sites import OURS, operators, plant_python, python_sites


def planted(source: str) -> list[str]:
    """All mutants of a text."""
    source = textwrap.dedent(source)
    texts = (plant_python(source, site) for site in python_sites("x.py", source))
    return [text for text in texts if text is not None]


@pytest.mark.parametrize(
    ("source", "mutant"),
    [
        ("if a < b: pass\n", "if a <= b: pass\n"),
        ("x = a and b\n", "x = a or b\n"),
        ("x = a is None\n", "x = a is not None\n"),
        ("x = limit + 1\n", "x = limit + 2\n"),
        ("x = limit + 1\n", "x = limit - 1\n"),
        ("while c:\n    break\n", "while c:\n    continue\n"),
        ("for a in b: pass\n", "for a in []: pass\n"),
        ("try: x\nexcept a.B: pass\n", "try: x\nexcept CosmicRayTestingException: pass\n"),
        ("try: x\nexcept (A, b.C): pass\n", "try: x\nexcept (A, CosmicRayTestingException): pass\n"),
        ("async def f():\n    await x.close()\n", "async def f():\n    pass\n"),
        ("def f():\n    self.a = 1\n", "def f():\n    pass\n"),
        ("def f():\n    raise Wrong('x') from None\n", "def f():\n    pass\n"),
        ("def f():\n    return 1\n", "def f():\n    return None\n"),
        ("f(x, a=1)\n", "f(x)\n"),
        ("f(a=1)\n", "f()\n"),
        ("f(name=1)\n", "f()\n"),
        ("t = threading.Thread(target=g, name='x')\n", "t = threading.Thread( name='x')\n"),
        ("f(a=y, b=z, **c)\n", "f( b=z, **c)\n"),
        ("f(a=y, b=z, **c)\n", "f(a=y, **c)\n"),
    ],
)
def test_a_fault_of_each_sort_is_planted(source: str, mutant: str) -> None:
    assert mutant in planted(source)


@pytest.mark.parametrize(
    "source",
    [
        "x: int | None\n",
        "def f(a: int | None, *, b: str | int) -> bool | None: pass\n",
        "if TYPE_CHECKING:\n    x = 1 + 2\n",
        "__all__ = ['a'] + ['b']\n",
        "Item = TypeVar('Item', bound=int)\n",
        "logger.warning('%d of %d', 1 + 2, 3, extra={'a': True})\n",
        "log.info('started', exc_info=True)\n",
        "def f():\n    '''Of 1 + 2.'''\n",
        "from a import b\n",
        "# a < b\n",
        "thread = threading.Thread(name='x')\n",
        "task = loop.create_task(work, name='x')\n",
        "@overload\ndef f(): ...\n",
        "x = read(name, encoding='utf-8')\n",
    ],
)
def test_what_cannot_matter_is_left_alone(source: str) -> None:
    assert planted(source) == []


def test_the_arguments_of_a_dataclass_are_left_alone_and_its_defaults_are_not() -> None:
    source = "@dataclass(frozen=True)\nclass A:\n    x: int | None = 3\n"
    assert planted(source) == [
        "class A:\n    x: int | None = 3\n",
        source.replace("3", "4"),
        source.replace("3", "2"),
    ]


def test_every_mutant_is_a_program_that_differs_in_the_lines_of_its_site() -> None:
    source = textwrap.dedent(
        """
        def f(a, *rest, b=None):
            try:
                g(a, b=b)
            except (OSError, ValueError) as error:
                raise Wrong from error
            if rest:
                return a
            return [x for x in rest if x > 1 or not b]
        """
    )
    sites = python_sites("x.py", source)
    assert {site.operator for site in sites} >= {"ExceptionReplacer", "ReplaceOrWithAnd", "AddNot", *OURS}
    for site in sites:
        mutant = plant_python(source, site)
        if mutant is None:
            continue
        compile(mutant, "x.py", "exec")
        before, after = source.splitlines(), mutant.splitlines()
        assert before[: site.line - 1] == after[: site.line - 1]
        assert before[site.end_line :] == after[len(after) - len(before) + site.end_line :]


@pytest.mark.parametrize("name", OURS)
def test_our_operators_do_what_their_examples_say(name: str) -> None:
    for example in OURS[name].examples():
        sites = [site for site in python_sites("x.py", example.pre_mutation_code + "\n") if site.operator == name]
        assert f"{example.post_mutation_code}\n" in [
            plant_python(example.pre_mutation_code + "\n", site) for site in sites
        ]


def test_all_operators_that_are_named_exist() -> None:
    assert len(operators()) > 30
