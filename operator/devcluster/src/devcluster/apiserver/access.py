"""Questions about oneself: `kubectl auth whoami`, `kubectl auth can-i`, and clients that ask before they act.

There is no RBAC in the embedded cluster: whoever has the token is its administrator, so every answer is yes. Roles and
bindings can be stored and read, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ADMINISTRATOR = "devcluster"
_GROUPS = ["system:masters", "system:authenticated"]
_REASON = "the embedded cluster has no RBAC: whoever has its token may do everything"


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A kind that is created to get an answer and is never stored."""

    group: str
    version: str
    kind: str
    plural: str


REVIEWS = (
    Review(group="authentication.k8s.io", version="v1", kind="SelfSubjectReview", plural="selfsubjectreviews"),
    Review(
        group="authorization.k8s.io", version="v1", kind="SelfSubjectAccessReview", plural="selfsubjectaccessreviews"
    ),
    Review(group="authorization.k8s.io", version="v1", kind="SelfSubjectRulesReview", plural="selfsubjectrulesreviews"),
)


def find_review(group: str, version: str, plural: str) -> Review | None:
    for review in REVIEWS:
        if (review.group, review.version, review.plural) == (group, version, plural):
            return review
    return None


def answer(review: Review, body: Mapping[str, Any], *, user: str, now: str) -> dict[str, Any]:
    """The review with its status filled in."""
    answered = {
        "kind": review.kind,
        "apiVersion": f"{review.group}/{review.version}",
        "metadata": {"creationTimestamp": now},
        "spec": body.get("spec", {}),
    }
    match review.kind:
        case "SelfSubjectReview":
            del answered["spec"]
            answered["status"] = {"userInfo": {"username": user, "groups": _GROUPS}}
        case "SelfSubjectAccessReview":
            answered["status"] = {"allowed": True, "reason": _REASON}
        case _:
            answered["status"] = {
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
    return answered
