"""How the operator gets to the Kubernetes API: the cluster of KUBECONFIG, else the one whose pod it runs in.

Its two clients ask here, kopf for watching and `cluster` for everything else, so that both go the same way. In a pod
that is the address that the kubelet gives, never a name: there may be no cluster DNS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kopf
import yaml
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from tasker.errors import ConfigurationError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts a pod's token and the certificate of the API server's authority."""


async def client_configuration(
    environment: Mapping[str, str] = os.environ, *, service_account: Path = SERVICE_ACCOUNT
) -> kubernetes_client.Configuration:
    """The official client's configuration; in a pod it reads the token anew as the kubelet renews it.

    Raises `ConfigurationError` when there is no cluster to go to.
    """
    kubeconfig = environment.get("KUBECONFIG")
    if not kubeconfig:
        return _pod_configuration(environment, service_account)
    configuration = kubernetes_client.Configuration()
    try:
        await kubernetes_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"KUBECONFIG {kubeconfig} cannot be used: {error}") from error
    return configuration


async def renew_credentials(
    configuration: kubernetes_client.Configuration,
    environment: Mapping[str, str] = os.environ,
    *,
    service_account: Path = SERVICE_ACCOUNT,
) -> None:
    """Puts the token as it is now into a configuration of `client_configuration`, for when the old one is refused.

    In a pod the client reads the file anew every minute by itself, which is too late for a token that was withdrawn; a
    KUBECONFIG is read, and the program that it may name is run, only here. Raises `ConfigurationError`.
    """
    newest = await client_configuration(environment, service_account=service_account)
    configuration.api_key = newest.api_key
    configuration.refresh_api_key_hook = newest.refresh_api_key_hook


def log_in_kopf(**arguments: Any) -> kopf.ConnectionInfo | None:
    """A login handler for kopf, which asks again when the API server refuses the token."""
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**arguments)
    return pod_connection()


def pod_connection(
    environment: Mapping[str, str] = os.environ, *, service_account: Path = SERVICE_ACCOUNT
) -> kopf.ConnectionInfo:
    """In place of kopf's own login with a service account, which asks for `kubernetes.default.svc`, a name.

    Raises `ConfigurationError` when this is no pod with a service account.
    """
    configuration = _pod_configuration(environment, service_account)
    _, _, token = configuration.api_key["BearerToken"].partition(" ")
    return kopf.ConnectionInfo(server=configuration.host, ca_path=configuration.ssl_ca_cert, token=token.strip())


def _pod_configuration(environment: Mapping[str, str], folder: Path) -> kubernetes_client.Configuration:
    configuration = kubernetes_client.Configuration()
    loader = InClusterConfigLoader(str(folder / "token"), str(folder / "ca.crt"), environ=environment)
    try:
        loader.load_and_set(configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise ConfigurationError(
            f"there is no cluster to go to: KUBECONFIG is not set, and this is no pod with a service account ({error})"
        ) from error
    return configuration
