"""The comparison of shown and real output can fail, and forgives what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.console_blocks import difference, read_commands

DOCUMENT = """
```console
$ first --now
one
two
$ second
```
```python
$ not a command
```
"""


def test_commands_are_read_with_their_output(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(DOCUMENT)
    first, second = read_commands(file)
    assert (first.text, first.output, first.line) == ("first --now", ("one", "two"), 3)
    assert (second.text, second.output) == ("second", ())


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        (["a  1.5 s"], "a 22 s"),
        (["a", "…", "d"], "a\nb\nc\nd"),
        (["a … d"], "a b c d"),
        (["pool: 0 → 3 → 0"], "pool: 0 → 2 → 3 → 0"),
        ([], "anything"),
    ],
)
def test_what_may_differ_is_forgiven(shown: list[str], came: str) -> None:
    assert difference(shown, came) is None


@pytest.mark.parametrize(
    ("shown", "came", "missing"),
    [
        (["a", "b"], "b\na", "b"),
        (["state: complete"], "state: error", "state: complete"),
        (["a"], "ab", "a"),
        (["a"], "", "a"),
    ],
)
def test_what_differs_is_told(shown: list[str], came: str, missing: str) -> None:
    assert difference(shown, came) == missing
