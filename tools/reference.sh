#!/usr/bin/env bash
# The stack that Plumb stands beside, on every node of a cluster that tools/cluster.sh made: the reference plugins
# (bridge, host-local, portmap), flannel with VXLAN, kube-proxy in nftables mode, CoreDNS. IPv4.
#   tools/reference.sh NAME
set -euo pipefail
tools=$(dirname "$(readlink -f "$0")")
name=${1:?the name of a cluster}
kubeconfig=$("$tools/cluster.sh" kubeconfig "$name")
D=${kubeconfig%/*}
peers=$("$tools/peers.sh" kube-proxy coredns flannel bridge host-local portmap loopback)
kubectl() { "$("$tools/kubectl.sh")" --kubeconfig "$kubeconfig" "$@"; }
cluster() { local verb=$1; shift; "$tools/cluster.sh" "$verb" "$name" "$@"; }

# until_out CMD…: prints what the command says once it says something.
until_out() {
  local said
  for _ in {1..300}; do
    said=$("$@" 2>/dev/null || :)
    if [ -n "$said" ]; then
      echo "$said"
      return
    fi
    sleep .1
  done
  echo "reference.sh: no answer: $*" >&2
  return 1
}

put() { cluster in "$1" sh -c 'mkdir -p "${1%/*}"; cat >"$1"; chmod 755 "$1"' _ "$2"; }

conflist() {
  cat <<JSON
{"cniVersion": "1.0.0", "name": "reference", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$1"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

proxy_settings() {
  cat <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.244.0.0/16
hostnameOverride: $1
bindAddress: 0.0.0.0
clientConnection: {kubeconfig: $D/pki/admin.kubeconfig, qps: 100, burst: 200}
conntrack: {maxPerCore: 0}
YAML
}

# flannel masquerades what leaves: a pod that asks the API server would get no answer otherwise.
on_node() {
  local node=$1 cidr plugin
  cidr=$(until_out kubectl get node "$node" -o 'jsonpath={.spec.podCIDR}')
  for plugin in bridge host-local portmap loopback; do put "$node" "/opt/cni/bin/$plugin" <"$peers/$plugin"; done
  echo '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}' >"$D/$node/flannel.json"
  proxy_settings "$node" >"$D/$node/kube-proxy.yaml"
  cluster start "$node" flannel env "NODE_NAME=$node" "$peers/flannel" --kube-subnet-mgr --iface=eth0 --ip-masq \
    --kubeconfig-file="$D/pki/admin.kubeconfig" --net-config-path="$D/$node/flannel.json"
  cluster start "$node" kube-proxy "$peers/kube-proxy" --config="$D/$node/kube-proxy.yaml"
  conflist "$cidr" | put "$node" /etc/cni/net.d/10-reference.conflist
}

for at in "$D"/*/kubelet.yaml; do on_node "$(basename "${at%/*}")"; done
"$tools/image.py" plumb.test/coredns:1 "$D/coredns.tar" "$peers/coredns:/coredns" '{"Entrypoint": ["/coredns"]}'
cluster image "$D/coredns.tar"
kubectl apply -f "$tools/reference.yaml" >&2
kubectl wait --for=condition=Ready nodes --all --timeout=90s >&2
kubectl -n kube-system rollout status deployment/coredns --timeout=90s >&2
