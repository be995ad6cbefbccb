"""`helm test`: whether the custom resources are served and the operator is ready, asked of the API server.

Runs in a pod with the operator's image: `python -c … NAMESPACE DEPLOYMENT`. It uses the standard library alone, finds
the API server by its address (no cluster DNS), and goes on asking for a minute before it says what is missing.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT_FOLDER", "/var/run/secrets/kubernetes.io/serviceaccount"))
KINDS = ("tasktemplates", "tasks", "workerpools")
PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", "60"))


def get(path: str) -> dict[str, Any]:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"[{host}]" if ":" in host else host
    token = (ACCOUNT / "token").read_text()
    request = urllib.request.Request(f"https://{address}:{port}{path}", headers={"Authorization": f"Bearer {token}"})
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=trusted) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)
    return found


def has(found: dict[str, Any], condition: str) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


def missing(namespace: str, deployment: str) -> list[str]:
    """What is not as it should be, in words."""
    faults = []
    for kind in KINDS:
        name = f"{kind}.tasker.dev"
        try:
            if not has(get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"), "Established"):
                faults.append(f"the definition {name} is not established")
        except (OSError, ValueError) as error:
            faults.append(f"the definition {name} cannot be read: {error}")
    try:
        found = get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
        seen = found.get("status", {}).get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
        if not (seen and has(found, "Available")):
            faults.append(f"the operator is not ready: kubectl -n {namespace} logs deployment/{deployment}")
    except (OSError, ValueError) as error:
        faults.append(f"the operator's Deployment cannot be read: {error}")
    return faults


def main() -> int:
    namespace, deployment = sys.argv[1:3]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while faults := missing(namespace, deployment):
        if time.monotonic() > deadline:
            print("\n".join(faults))
            return 1
        time.sleep(1)
    print("the custom resources are served and the operator is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
