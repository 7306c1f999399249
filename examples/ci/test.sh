#!/usr/bin/env bash
# A network test for a pipeline: a cluster of two nodes on the runner, what is to be tested in it, and what must hold.
# plumb, plumb-cni beside it, and kubectl are on the PATH. docs/containers.md says what the runner must allow.
#
#   examples/ci/test.sh [MANIFEST]
set -euo pipefail

# A name of this run's own: runs side by side do not see each other.
name=ci-$$
# Nothing here speaks to another cluster, whatever the runner's own kubeconfig is. Once the lab is up this is its own.
export KUBECONFIG=/dev/null
manifest=${1:-$(dirname "$0")/../shop.yaml}

finish() {
  code=$?
  # A lab whose start has failed is gone, and has said why; one that a manifest does not become Ready in is there.
  if [ $code != 0 ] && KUBECONFIG=$(plumb lab kubeconfig --name "$name" 2>/dev/null); then
    echo "--- what the lab looks like" >&2
    plumb lab status >&2 || true
    kubectl get pods,services,events -A -o wide >&2 || true
    plumb sysdump --output "${SYSDUMP:-plumb-sysdump.tar.gz}" >&2 || true
  fi
  plumb lab down --name "$name"
  exit $code
}
trap finish EXIT

# Ends once the manifest's Pods and Deployments are Ready; says what is not, and why, after a minute.
plumb lab up --name "$name" --nodes 2 -f "$manifest"

# From here on plumb and kubectl find this lab by themselves.
KUBECONFIG=$(plumb lab kubeconfig --name "$name")

# Whatever was applied or restarted since: everything Ready.
kubectl -n shop rollout restart deployment/payments
plumb lab wait

echo "--- what must pass"
kubectl -n shop exec web -- plumb demo get http://payments:8080/
kubectl get --raw /api/v1/namespaces/shop/services/web:8080/proxy/

echo "--- what must be denied"
if kubectl -n shop exec web -- plumb demo tcp db:5432 --timeout 1; then
  echo "web reaches db, which only api may" >&2
  exit 1
fi

echo "--- what must go on while a node's agent is away"
plumb lab agent stop node1
kubectl -n shop exec web -- plumb demo get http://payments:8080/
plumb lab agent start node1
plumb status
