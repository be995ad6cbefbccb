"""An approval: a decision chooses who has to approve a request, and a convergence waits for those who were chosen.

All handlers only compute, so they may safely run twice.
"""

from pydantic import BaseModel

from tasker_worker import PermanentError, StepContext, depends_on, inputs, step_handler
from tasker_worker.decision import Decision, decision_handler

AUTOMATIC_BELOW = 1000
MANAGER_BELOW = 5000


class Request(BaseModel):
    """What is asked for."""

    amount: int | float
    purpose: str


class Approval(BaseModel):
    """Who has approved a request."""

    approved_by: str


@step_handler("validate_request")
@inputs("amount", "purpose")
def validate_request(amount: int | float = 0, purpose: str = "unsaid") -> Request:
    """The request, with an amount of 0 when there is none. A negative one fails for good."""
    if amount < 0:
        raise PermanentError(f"an amount is 0 or more, not {amount}")
    return Request(amount=amount, purpose=purpose)


@decision_handler("route_request")
@depends_on(request="validate_request")
def route_request(request: Request) -> Decision:
    """Below 1,000 nobody is asked, below 5,000 a manager, from there on a manager and the finance department."""
    if request.amount < AUTOMATIC_BELOW:
        return Decision.route("auto_approve", route="automatic", amount=request.amount)
    if request.amount < MANAGER_BELOW:
        return Decision.route("manager_approval", route="manager", amount=request.amount)
    return Decision.route("manager_approval", "finance_review", route="manager and finance", amount=request.amount)


@step_handler("approve")
@depends_on(request="validate_request")
def approve(request: Request, context: StepContext) -> Approval:
    """One approval, by whom the template says. Real ones would ask somebody."""
    return Approval(approved_by=context.get_config("approver"))


@step_handler("finalize_approval")
@depends_on(
    request="validate_request",
    automatic="auto_approve",
    manager="manager_approval",
    finance="finance_review",
)
def finalize_approval(
    request: Request,
    automatic: Approval | None = None,
    manager: Approval | None = None,
    finance: Approval | None = None,
) -> dict[str, object]:
    """The end: it starts when those who were chosen have approved. Those who were not have no result."""
    approvals = [approval for approval in (automatic, manager, finance) if approval is not None]
    return {
        "amount": request.amount,
        "purpose": request.purpose,
        "approved_by": [approval.approved_by for approval in approvals],
    }
