"""Directed graphs of step positions: cycles, layers, ancestors. Used to check templates and to prepare their rows."""

from __future__ import annotations

from collections.abc import Sequence

Dependencies = Sequence[Sequence[int]]
"""For each node, by position, the positions of the nodes it depends on."""


def find_cycle(dependencies: Dependencies) -> list[int] | None:
    """A shortest-found cycle as positions, first repeated last (``[0, 1, 0]``), each depending on the one before it.

    None when the graph has none. Runs in time linear in nodes and arrows, without recursion.
    """
    unmet = [len(parents) for parents in dependencies]
    children = dependents_of(dependencies)
    ready = [position for position, count in enumerate(unmet) if count == 0]
    while ready:
        for child in children[ready.pop()]:
            unmet[child] -= 1
            if unmet[child] == 0:
                ready.append(child)
    start = next((position for position, count in enumerate(unmet) if count > 0), None)
    if start is None:
        return None
    # Every node left waits for one that is left too, so walking up meets itself.
    seen: dict[int, int] = {}
    path: list[int] = []
    position = start
    while position not in seen:
        seen[position] = len(path)
        path.append(position)
        position = next(parent for parent in dependencies[position] if unmet[parent] > 0)
    cycle = path[seen[position] :][::-1]
    lowest = cycle.index(min(cycle))
    cycle = cycle[lowest:] + cycle[:lowest]
    return [*cycle, cycle[0]]


def dependents_of(dependencies: Dependencies) -> list[list[int]]:
    """For each node the nodes that depend on it."""
    children: list[list[int]] = [[] for _ in dependencies]
    for position, parents in enumerate(dependencies):
        for parent in parents:
            children[parent].append(position)
    return children


def topological_order(dependencies: Dependencies) -> list[int]:
    """Positions so that each comes after all it depends on. The graph must have no cycle."""
    unmet = [len(parents) for parents in dependencies]
    children = dependents_of(dependencies)
    order = [position for position, count in enumerate(unmet) if count == 0]
    for position in order:
        for child in children[position]:
            unmet[child] -= 1
            if unmet[child] == 0:
                order.append(child)
    return order


def bounded_ancestors(dependencies: Dependencies, limit: int) -> list[list[int] | None]:
    """For each node all nodes it depends on, directly or not, in order of position; None when they are over `limit`.

    Sets that have outgrown the limit are not carried on, so that a graph of many layers costs no more than a small one.
    """
    ancestors: list[set[int] | None] = [set() for _ in dependencies]
    for position in topological_order(dependencies):
        gathered: set[int] | None = set(dependencies[position])
        for parent in dependencies[position]:
            inherited = ancestors[parent]
            if inherited is None or gathered is None:
                gathered = None
                break
            gathered |= inherited
            if len(gathered) > limit:
                gathered = None
                break
        ancestors[position] = gathered
    return [None if found is None else sorted(found) for found in ancestors]
