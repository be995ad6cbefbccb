"""The operator finds its cluster by KUBECONFIG, else by what the kubelet gives a pod, and says what it misses."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from tasker.controller.handlers import make_settings
from tasker.controller.kube import access
from tasker.controller.kube.access import client_configuration, pod_connection, renew_credentials
from tasker.errors import ConfigurationError

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "ca.crt").write_text("certificate")
    return tmp_path


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
async def test_in_a_pod_both_clients_go_to_the_address_that_the_kubelet_gives(
    service_account: Path, host: str, server: str
) -> None:
    environment = POD | {"KUBERNETES_SERVICE_HOST": host}
    configuration = await client_configuration(environment, service_account=service_account)
    connection = pod_connection(environment, service_account=service_account)
    assert configuration.host == connection.server == server
    assert str(connection.ca_path) == configuration.ssl_ca_cert == str(service_account / "ca.crt")
    assert connection.as_http_headers() == {"Authorization": "Bearer secret"}


async def test_a_pods_token_that_is_refused_is_read_anew_before_its_minute_is_over(service_account: Path) -> None:
    configuration = await client_configuration(POD, service_account=service_account)
    (service_account / "token").write_text("newer")
    assert await configuration.get_api_key_with_prefix("BearerToken") == "bearer secret\n"
    await renew_credentials(configuration, POD, service_account=service_account)
    assert await configuration.get_api_key_with_prefix("BearerToken") == "bearer newer"
    (service_account / "token").unlink()
    with pytest.raises(ConfigurationError):
        await renew_credentials(configuration, POD, service_account=service_account)


async def test_kubeconfig_goes_before_the_pod(service_account: Path, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(
        """
        current-context: a
        contexts: [{name: a, context: {cluster: a, user: a}}]
        clusters: [{name: a, cluster: {server: "https://127.0.0.1:7"}}]
        users: [{name: a, user: {token: mine}}]
        """
    )
    environment = POD | {"KUBECONFIG": str(file)}
    assert (await client_configuration(environment, service_account=service_account)).host == "https://127.0.0.1:7"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"KUBECONFIG is not set, and this is no pod with a service account \(Service host/port is not set"),
        (POD, r"this is no pod with a service account \(Service token file does not exist"),
        ({"KUBECONFIG": "/no/file"}, "KUBECONFIG /no/file cannot be used"),
        ({"KUBECONFIG": __file__}, "KUBECONFIG .*test_access.py cannot be used"),
    ],
)
async def test_no_cluster_is_a_wrong_setting(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await client_configuration(environment, service_account=tmp_path)


def test_kopf_never_gives_up_on_an_absent_api_server() -> None:
    backoffs = make_settings(75, cluster_wide=True).networking.error_backoffs
    assert not isinstance(backoffs, float)
    first = list(itertools.islice(backoffs, 500))
    assert len(first) == 500
    assert first[0] <= 1
    assert max(first) <= 16
    assert min(first[6:]) >= 8, "it does not loop hot"


def test_kopf_goes_where_the_rest_goes(service_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_pod = pod_connection(POD, service_account=service_account)
    monkeypatch.setattr(access, "pod_connection", lambda: of_the_pod)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    arguments = {"logger": logging.getLogger(), "settings": make_settings(75, cluster_wide=True)}
    in_a_pod = access.log_in_kopf(**arguments)
    assert in_a_pod == of_the_pod
    file = tmp_path / "kubeconfig"
    file.write_text(
        """
        current-context: a
        contexts: [{name: a, context: {cluster: a, user: a}}]
        clusters: [{name: a, cluster: {server: "https://127.0.0.1:7"}}]
        users: [{name: a, user: {token: mine}}]
        """
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    connection = access.log_in_kopf(**arguments)
    assert connection is not None
    assert (connection.server, connection.token) == ("https://127.0.0.1:7", "mine")


async def test_a_token_that_a_pod_reads_by_itself_is_still_read_after_a_renewal(service_account: Path) -> None:
    configuration = await client_configuration(POD, service_account=service_account)
    hook: Any = configuration.refresh_api_key_hook
    assert hook is not None
    await renew_credentials(configuration, POD, service_account=service_account)
    assert configuration.refresh_api_key_hook not in (None, hook)
