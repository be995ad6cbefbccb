"""Graphs against their definitions: what a few lines of brute force say, the fast functions must say too."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from tasker.model.graph import bounded_ancestors, dependents_of, find_cycle, topological_order

Graph = list[list[int]]


@some.composite
def graphs(draw: some.DrawFn, *, cyclic: bool) -> Graph:
    """Up to nine nodes with any arrows, or only such as lead from an earlier node of a random order to a later one."""
    size = draw(some.integers(0, 9))
    order = draw(some.permutations(range(size)))
    place = {node: index for index, node in enumerate(order)}
    dependencies: Graph = []
    for node in range(size):
        possible = [other for other in range(size) if other != node and (cyclic or place[other] < place[node])]
        chosen = draw(some.lists(some.sampled_from(possible), unique=True, max_size=4)) if possible else []
        dependencies.append(chosen)
    return dependencies


def closure(dependencies: Graph) -> list[set[int]]:
    """For each node all nodes that it depends on, by adding until nothing is new."""
    above = [set(parents) for parents in dependencies]
    while True:
        wider = [found.union(*(above[parent] for parent in found)) for found in above]
        if wider == above:
            return above
        above = wider


@given(graphs(cyclic=True))
def test_a_cycle_is_found_exactly_when_a_node_depends_on_itself(dependencies: Graph) -> None:
    exists = any(node in above for node, above in enumerate(closure(dependencies)))
    cycle = find_cycle(dependencies)
    assert (cycle is not None) == exists
    if cycle is not None:
        assert cycle[0] == cycle[-1] == min(cycle)
        assert len(set(cycle)) == len(cycle) - 1
        assert all(before in dependencies[after] for before, after in pairwise(cycle))


@given(graphs(cyclic=False))
def test_a_graph_without_a_cycle_has_none_found(dependencies: Graph) -> None:
    assert find_cycle(dependencies) is None


@given(graphs(cyclic=False))
def test_the_topological_order_puts_every_node_after_what_it_depends_on(dependencies: Graph) -> None:
    order = topological_order(dependencies)
    assert sorted(order) == list(range(len(dependencies)))
    place = {node: index for index, node in enumerate(order)}
    assert all(place[parent] < place[node] for node, parents in enumerate(dependencies) for parent in parents)


@given(graphs(cyclic=True))
def test_dependents_are_the_arrows_turned_round(dependencies: Graph) -> None:
    arrows = {(parent, node) for node, parents in enumerate(dependencies) for parent in parents}
    assert {(parent, node) for parent, nodes in enumerate(dependents_of(dependencies)) for node in nodes} == arrows


@given(graphs(cyclic=False), some.integers(0, 9))
def test_ancestors_are_all_there_are_or_none_when_over_the_limit(dependencies: Graph, limit: int) -> None:
    for found, above in zip(bounded_ancestors(dependencies, limit), closure(dependencies), strict=True):
        assert found == (sorted(above) if len(above) <= limit else None)


def test_ancestors_of_a_deep_graph_cost_no_more_than_the_limit() -> None:
    chain = [[node - 1] if node else [] for node in range(20_000)]
    found = bounded_ancestors(chain, 100)
    assert found[100] == list(range(100))
    assert found[101] is None and found[19_999] is None
