#!/usr/bin/env bash
# The cluster suite on a throw-away kind cluster: create, build, load, run with the operator outside and from the chart,
# delete. Needs docker and kind; `make test` or any other target must have set up .venv. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=tasker-test-$$
folder=$(mktemp -d)
postgres=$name-postgres

finish() {
    docker rm --force "$postgres" >/dev/null 2>&1 || true
    kind delete cluster --name "$name" || true
    rm -rf "$folder"
}
trap finish EXIT

docker build --file operator/Dockerfile --tag tasker-operator:kind .
docker build --tag tasker-worker:kind worker_image

export TASKER_TEST_KUBECONFIG=$folder/kubeconfig
kind create cluster --name "$name" --kubeconfig "$TASKER_TEST_KUBECONFIG" --wait 2m
kind load docker-image --name "$name" tasker-operator:kind tasker-worker:kind

# Beside the nodes, so that pods and this machine reach it at one address.
docker run --detach --name "$postgres" --network kind --env POSTGRES_PASSWORD=kind postgres:18 >/dev/null
until docker exec "$postgres" pg_isready --quiet --host 127.0.0.1; do sleep 1; done
address=$(docker inspect --format '{{.NetworkSettings.Networks.kind.IPAddress}}' "$postgres")

export TASKER_TEST_DATABASE_URL=postgresql://postgres:kind@$address:5432/postgres
export TASKER_TEST_OPERATOR_IMAGE=tasker-operator:kind
export TASKER_TEST_WORKER_IMAGE=tasker-worker:kind
export TASKER_TEST_IMAGE_PULL_POLICY=Never
for operator in outside chart; do
    TASKER_TEST_OPERATOR=$operator .venv/bin/pytest tests/cluster "$@"
done
