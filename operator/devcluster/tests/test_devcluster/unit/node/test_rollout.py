"""Rollouts keep within their bounds and end, whatever the order in which pods come and go."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devcluster.node.rollout import (
    Bounds,
    ReplicaSetView,
    plan_paused,
    plan_recreate,
    plan_rolling,
    read_bounds,
    template_hash,
)


def view(name: str, replicas: int, available: int | None = None, present: int | None = None) -> ReplicaSetView:
    """A ReplicaSet all of whose pods are available unless said otherwise."""
    available = replicas if available is None else available
    return ReplicaSetView(
        name=name, replicas=replicas, available=available, present=replicas if present is None else present
    )


@pytest.mark.parametrize(
    ("strategy", "desired", "surge", "unavailable"),
    [
        (None, 4, 1, 1),
        (None, 3, 1, 0),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": "50%"}}, 3, 2, 1),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}, 5, 2, 0),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, 5, 0, 1),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 9}}, 5, 0, 5),
        ({"type": "Recreate"}, 3, 0, 3),
    ],
)
def test_bounds_are_rounded_up_for_more_and_down_for_fewer(
    strategy: Any, desired: int, surge: int, unavailable: int
) -> None:
    assert read_bounds(strategy, desired) == Bounds(surge=surge, unavailable=unavailable)


def test_hash_is_of_the_content_and_not_of_its_order() -> None:
    assert template_hash({"a": 1, "b": {"c": 2, "d": 3}}) == template_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert template_hash({"a": 1}) != template_hash({"a": 2})
    assert template_hash({}).isalnum()


def test_pods_that_serve_nobody_go_first() -> None:
    olds = [view("good", 1), view("broken", 2, 0)]
    assert plan_rolling(3, Bounds(surge=1, unavailable=1), view("new", 1, 0), olds) == {"broken": 1}


def test_fewer_desired_pods_are_taken_from_the_new_template_when_it_has_too_many() -> None:
    assert plan_rolling(2, Bounds(surge=1, unavailable=0), view("new", 5), []) == {"new": 2}


@given(
    desired=st.integers(0, 8),
    surge=st.integers(0, 4),
    unavailable=st.integers(0, 4),
    olds=st.lists(st.integers(0, 6), max_size=3),
    seed=st.integers(0, 10_000),
)
def test_rollout_ends_and_never_leaves_its_bounds(
    desired: int, surge: int, unavailable: int, olds: list[int], seed: int
) -> None:
    """Pods become available in any order; what is asked away goes at once."""
    if surge == unavailable == 0:
        unavailable = 1
    bounds = Bounds(surge=surge, unavailable=min(unavailable, desired))
    chance = random.Random(seed)
    # The rollout begins where a Deployment of as many pods stood.
    left = desired
    old = []
    for number, count in enumerate(olds):
        old.append(view(f"old{number}", min(count, left)))
        left -= min(count, left)
    if old:
        old[-1] = view(old[-1].name, old[-1].replicas + left)
    new = view("new", 0)
    started_whole = bool(old)
    for _ in range(300):
        plan = plan_rolling(desired, bounds, new, old)
        if not plan and new.available == new.replicas:
            break
        for name, replicas in plan.items():
            assert replicas >= 0
            if name == "new":
                new = replace(new, replicas=replicas, available=min(new.available, replicas))
            else:
                old = [
                    replace(found, replicas=replicas, available=min(found.available, replicas))
                    if found.name == name
                    else found
                    for found in old
                ]
        if new.available < new.replicas and chance.random() < 0.5:
            new = replace(new, available=new.available + 1)
        total = new.replicas + sum(found.replicas for found in old)
        available = new.available + sum(found.available for found in old)
        assert total <= desired + bounds.surge
        if started_whole:
            assert available >= desired - bounds.unavailable
    assert new.replicas == new.available == desired
    assert all(found.replicas == 0 for found in old)


def test_recreate_waits_until_the_last_old_pod_is_gone() -> None:
    assert plan_recreate(2, view("new", 0), [view("old", 2)]) == {"old": 0}
    assert plan_recreate(2, view("new", 0), [view("old", 0, present=1)]) == {}
    assert plan_recreate(2, view("new", 0), [view("old", 0)]) == {"new": 2}
    assert plan_recreate(2, view("new", 2), [view("old", 0)]) == {}


def test_paused_deployment_scales_what_there_is() -> None:
    assert plan_paused(3, None, [view("only", 1)]) == {"only": 3}
    assert plan_paused(0, view("new", 0), [view("only", 2)]) == {"only": 0}
    assert plan_paused(3, view("new", 1), [view("old", 2)]) == {}
    assert plan_paused(4, view("new", 1), [view("old", 2)]) == {"new": 2}
    assert plan_paused(2, None, []) == {}
