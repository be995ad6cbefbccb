"""The local node of the embedded cluster: an ordinary client of the API server that runs Deployments as processes.

How a pod comes to run, each arrow being a write to the API and a word of its watch::

    Deployment ──deployments──▶ ReplicaSet ──replica_sets──▶ Pod ──kubelet──▶ process, log file, status, Events

`node` puts the parts together around one work queue (`work_queue`) over local copies of the objects (`informer`).
What is decided is decided in pure functions: `rollout`, `deployment_status`, `pod_status`, `pod_support`.
"""

from __future__ import annotations

from devcluster.node.node import Node

__all__ = ["Node"]
