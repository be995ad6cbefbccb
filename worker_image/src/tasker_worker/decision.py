"""Decisions: steps of the type `decision`, whose handlers choose which of the steps that depend on them run.

    @decision_handler("route_request")
    @inputs("amount")
    def route_request(amount: float) -> Decision:
        if amount < 1000:
            return Decision.route("auto_approve", route="automatic")
        return Decision.route("manager_approval", "finance_review", route="two people")

or as a class, `DecisionHandler`, or `DecisionMixin` beside another base. The steps that are not chosen are skipped,
with all that only they lead to. What is recorded as the step's result, for later steps to read:

    {"decision": {"type": "create_steps", "step_names": ["auto_approve"]}, "routing_context": {"route": "automatic"}}
    {"decision": {"type": "no_branches", "reason": "nothing to approve"}, "routing_context": {}}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .handler import StepHandler, step_handler
from .result import StepResult

__all__ = ["Decision", "DecisionHandler", "DecisionMixin", "decision_handler"]

MAX_BRANCHES = 100
"""Steps that one decision may choose at most."""

Decider = TypeVar("Decider", bound="Callable[..., Decision | StepResult | Awaitable[Decision | StepResult]]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the handler of a decision returns. Made by `route` or `skip`; not to be made otherwise."""

    step_names: tuple[str, ...] = ()
    """The chosen steps, each once; none when no branch is to run."""
    reason: str | None = None
    """Why there is no branch; None when there is one."""
    routing_context: Mapping[str, Any] = field(default_factory=dict)
    """JSON that is kept in the result: on what grounds it was decided."""
    metadata: Mapping[str, Any] | None = None
    """JSON that is stored beside the result."""

    @classmethod
    def route(cls, *steps: str, **routing_context: Any) -> Decision:
        """Run these steps, which depend on the decision, and skip the others that do.

        A name that is given twice counts once. Raises ValueError when there is no name, or one that is no text. Whether
        the steps are there to be chosen, and are at most 100, is checked when the handler has returned: the decision
        fails for good when not.
        """
        return _chosen(steps, routing_context, None)

    @classmethod
    def skip(cls, reason: str, /, **routing_context: Any) -> Decision:
        """Run none of the steps that depend on the decision; the task goes on with what does not depend on them.

        Raises ValueError without a reason.
        """
        return _none_chosen(reason, routing_context, None)

    def as_result(self) -> dict[str, Any]:
        """What is recorded as the step's result."""
        decision: dict[str, Any]
        if self.reason is None:
            decision = {"type": "create_steps", "step_names": list(self.step_names)}
        else:
            decision = {"type": "no_branches", "reason": self.reason}
        return {"decision": decision, "routing_context": dict(self.routing_context)}


def _chosen(
    steps: Iterable[Any], routing_context: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
) -> Decision:
    names = list(steps)
    if not names:
        raise ValueError("a decision for branches names at least one step; one for none says why")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a decision chooses steps by their names, not {name!r}")
    return Decision(step_names=tuple(dict.fromkeys(names)), routing_context=routing_context or {}, metadata=metadata)


def _none_chosen(
    reason: Any, routing_context: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
) -> Decision:
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"a decision for no branch says why, in words, not {reason!r}")
    return Decision(reason=reason, routing_context=routing_context or {}, metadata=metadata)


class DecisionMixin:
    """What a decision's handler returns, as methods. For a class that is a StepHandler by another base."""

    def decision_success(
        self,
        steps: str | Iterable[str],
        routing_context: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Run exactly these steps (or this one) of those that depend on the decision; as `Decision.route`.

        `routing_context` is JSON that is kept in the result, `metadata` JSON that is stored beside it.
        """
        return _chosen([steps] if isinstance(steps, str) else steps, routing_context, metadata)

    def decision_no_branches(
        self,
        reason: str,
        routing_context: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Run none of the steps that depend on the decision; the task goes on. As `Decision.skip`."""
        return _none_chosen(reason, routing_context, metadata)


class DecisionHandler(DecisionMixin, StepHandler):
    """A decision as a class: set `handler_name`, and have ``call(self, context)`` return a Decision.

    class RouteRequest(DecisionHandler):
        handler_name = "route_request"

        async def call(self, context: StepContext) -> Decision:
            amount = context.get_input("amount", 0)
            return self.decision_success(["auto_approve" if amount < 1000 else "manager_approval"], {"amount": amount})
    """


def decision_handler(name: str) -> Callable[[Decider], Decider]:
    """`step_handler` for a function (sync or async) that returns a Decision, which type checkers hold it to.

    It may still fail as any handler does, by raising or by returning ``StepResult.fail(…)``.
    """
    return step_handler(name)
