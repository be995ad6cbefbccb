"""An embedded Kubernetes API server for development and tests, on one machine and for one user.

    server       `ApiServer`: start, stop, kubeconfig
    dispatch     HTTP in and out; `requests`, `bodies`, `protobuf` read what came, `views` choose the form of the answer
    operations   the verbs; `writing`, `deleting`, `listing`, `watching`, `scaling`, `logs` do them
    garbage      what follows from deletions, in the background
    cluster      the shared state: `storage` (objects, changes), `registry` (what is served), `kinds` (built-in ones)
    documents    version, health, `discovery`, OpenAPI
    interception what a test may put between the clients and the server

What Kubernetes does to an object is in `devcluster.machinery`. Not here: RBAC, admission webhooks, exec and
port-forward, networking, and every kind that is not listed in discovery.
"""

from devcluster.apiserver.server import ApiServer

__all__ = ["ApiServer"]
