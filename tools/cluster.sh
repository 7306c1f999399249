#!/usr/bin/env bash
# A real Kubernetes on one machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and nodes with
# containerd and kubelet. No network plugin: nodes are NotReady until there is one. For root.
#
#   tools/cluster.sh up NAME [--nodes N] [--dual] [--owner PID] [--controllers LIST]
#                                     control plane and N nodes (2); --dual: IPv4 and IPv6; --owner: down when it ends;
#                                     --controllers: as kube-controller-manager's flag says, such as '*,-node-ipam-controller'
#   tools/cluster.sh down NAME        end every process and remove everything
#   tools/cluster.sh kubeconfig NAME  the administrator's kubeconfig, for this machine
#   tools/cluster.sh in NAME NODE CMD…           run a command in a node ("cp": the control plane, "out": outside)
#   tools/cluster.sh start NAME NODE UNIT [CMD…] start a process and remember how; without CMD: start it again
#   tools/cluster.sh kill NAME NODE UNIT [SIGNAL] send it a signal (KILL)
#   tools/cluster.sh image NAME FILE  import an image into every node
#   tools/cluster.sh routes NAME      let the API server reach pods: its proxy and webhooks need that
#   tools/cluster.sh unplug NAME NODE, plug NAME NODE   take a node's cable and its interface away, give it a new one
#   tools/cluster.sh reboot NAME NODE end everything in a node, lose its /run and interfaces, start it with a new boot id
#
#            ┌ anchor: PID and network namespace of the cluster ──────────────────────────────┐
#   127.0.0.1:port ══ unix socket ══ cp 192.168.1.2 ─┐          ┌─ node1 192.168.1.10  pid 1 … │
#            │                                     underlay ────┤  node2 192.168.1.11  pid 1 … │
#            │          out 192.168.1.1, 203.0.113.10 ┘  bridge └─ …                           │
#            └────────────────────────────────────────────────────────────────────────────────┘
# A node is a PID, network, mount and UTS namespace. Nothing is added to the network namespace of the caller but a
# listener on 127.0.0.1, so clusters meet neither each other nor a home network. When the anchor dies, the kernel ends
# every process and namespace: `down` is that, and then cgroups and files.
set -euo pipefail
me=$(readlink -f "$0")
tools=${me%/*}
PATH=$PATH:/usr/sbin:/sbin
top=${PLUMB_CLUSTERS:-/var/tmp/plumb-clusters}

cp_ip=192.168.1.2
out_ip=192.168.1.1
pods=10.244.0.0/16
services=10.96.0.0/12
first_service=10.96.0.1
dns=10.96.0.10
pods6=fd00:10:244::/56
services6=fd00:10:96::/112
pause=plumb.test/pause:1
controllers_on='*'

die() { echo "cluster.sh: $*" >&2; exit 1; }

# v6 192.168.1.N -> fd00:192:168:1::N
v6() { echo "fd00:192:168:1::${1##*.}"; }

# until_ok SECONDS WHAT CMD…: asks until the command succeeds.
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    if [ $SECONDS -ge $end ]; then
      tail -n 5 "$D"/log/* "$D"/*/log/* >&2 || :
      die "not in time: $what"
    fi
    sleep .05
  done
}

# What a cluster needs of the machine, and the Debian package that has it.
need() {
  local missing=()
  while [ $# -gt 0 ]; do
    command -v "$1" >/dev/null || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -eq 0 ] || die "missing: apt-get install ${missing[*]}"
}

# --- namespaces ------------------------------------------------------------------------------------------------

# A process that is pid 1 of a PID namespace, does SETUP, reaps orphans and ends never. The file says its number here:
# /proc still shows the caller's numbers when bash reads it.
#   hold DIR SETUP UNSHARE-OPTION…
hold() {
  local dir=$1 setup=$2
  shift 2
  mkdir -p "$dir/log"
  rm -f "$dir/init"
  local enter=()
  [ -z "${anchor:-}" ] || enter=(nsenter --target "$anchor" --pid --net)
  setsid "${enter[@]}" unshare --fork --kill-child --pid --net "$@" bash -ec '
    read -r pid _ </proc/self/stat
    dir=$1
    eval "$2"
    echo "$pid" >"$dir/init.new"
    mv "$dir/init.new" "$dir/init"
    trap : TERM INT HUP
    while :; do sleep infinity & wait $! || :; done' _ "$dir" "$setup" </dev/null >"$dir/log/init" 2>&1 &
  until_ok 60 "namespaces of ${dir##*/}" test -s "$dir/init"
}

init_of() { cat "$D/$1/init" 2>/dev/null || die "cluster $name has no $1"; }

# inside NODE CMD…: in all namespaces of the node.
inside() {
  local init
  init=$(init_of "$1")
  shift
  nsenter --target "$init" --mount --net --uts --pid --wd=/ -- "$@"
}

# A cable from the node to the underlay, with an address on both families.
plug() {
  local node=$1 ip=$2 init
  init=$(init_of "$node")
  nsenter --target "$anchor" --net ip link add "v-$node" type veth peer name eth0 netns "$init"
  nsenter --target "$anchor" --net ip link set "v-$node" master underlay up
  nsenter --target "$init" --net sh -ec "
    ip link set lo up
    ip addr add $ip/24 dev eth0
    ip addr add $(v6 "$ip")/64 dev eth0 nodad
    ip link set eth0 up
    [ $node = out ] || { ip route add default via $out_ip; ip -6 route add default via $(v6 $out_ip); }"
}

underlay() {
  hold "$D" 'ip link set lo up; ip link add underlay type bridge mcast_snooping 0; ip link set underlay up'
  anchor=$(cat "$D/init")
  # /proc of the outside shows its own processes only.
  hold "$D/out" 'mount -t proc proc /proc
    ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8::10/128 dev lo
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1' --mount --uts --propagation private
  plug out $out_ip
}

# --- processes -------------------------------------------------------------------------------------------------

# start_unit NODE UNIT [CMD…]: output goes to the node's log directory; the number is the node's own. The process is
# handed to pid 1 of its node (--fork): nsenter would stop with a child that is stopped, and never look at it again.
start_unit() {
  local node=$1 unit=$2 dir=$D/$1
  shift 2
  [ $# -eq 0 ] || printf '%q ' "$@" >"$dir/$unit.cmd"
  [ -s "$dir/$unit.cmd" ] || die "$node has no $unit"
  rm -f "$dir/$unit.pid"
  inside "$node" setsid --fork bash -c 'echo $$ >"$1.pid.new"; mv "$1.pid.new" "$1.pid"; eval "exec $(cat "$1.cmd")"' _ \
    "$dir/$unit" </dev/null >>"$dir/log/$unit" 2>&1
  until_ok 60 "start of $unit on $node" test -s "$dir/$unit.pid"
  [ "$unit" != kube-apiserver ] || until_ok 300 "kube-apiserver's readyz" api_ready
}

kill_unit() {
  local pid
  pid=$(cat "$D/$1/$2.pid" 2>/dev/null) || die "$1 has no $2"
  inside "$1" kill "-${3:-KILL}" "$pid"
}

# --- certificates ----------------------------------------------------------------------------------------------

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$P/$1.key"; }

# certificate NAME SUBJECT [SUBJECT-ALTERNATIVE-NAMES]
certificate() {
  key "$1"
  local extensions="extendedKeyUsage=clientAuth,serverAuth"
  [ -z "${3:-}" ] || extensions+=$'\n'"subjectAltName=$3"
  openssl req -new -key "$P/$1.key" -subj "$2" |
    openssl x509 -req -CA "$P/ca.crt" -CAkey "$P/ca.key" -set_serial "0x$(openssl rand -hex 8)" -days 365 \
      -out "$P/$1.crt" -extfile <(echo "$extensions") 2>/dev/null
}

# kubeconfig_for NAME SERVER FILE: with the certificate NAME.
kubeconfig_for() {
  (umask 077; cat >"$3" <<YAML
apiVersion: v1
kind: Config
current-context: plumb
clusters: [{name: plumb, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$P/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$P/$1.crt"), client-key-data: $(base64 -w0 "$P/$1.key")}}]
contexts: [{name: plumb, context: {cluster: plumb, user: $1}}]
YAML
  )
}

public_key_infrastructure() {
  mkdir -p "$P"
  key ca
  openssl req -x509 -new -key "$P/ca.key" -subj /CN=plumb-cluster -days 365 -out "$P/ca.crt"
  key sa
  openssl ec -in "$P/sa.key" -pubout -out "$P/sa.pub" 2>/dev/null
  local kubernetes=kubernetes.default.svc.cluster.local
  certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:${kubernetes%.cluster.local},\
DNS:$kubernetes,DNS:localhost,IP:$cp_ip,IP:$(v6 $cp_ip),IP:$first_service,IP:127.0.0.1"
  certificate admin /O=system:masters/CN=admin
  kubeconfig_for admin "https://$cp_ip:6443" "$P/admin.kubeconfig"
  certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  local who
  for who in kube-controller-manager kube-scheduler; do
    certificate $who /CN=system:$who
    kubeconfig_for $who "https://$cp_ip:6443" "$P/$who.kubeconfig"
  done
}

# --- control plane ---------------------------------------------------------------------------------------------

api_ready() { [ "$(inside cp curl -sk --max-time 2 "https://$cp_ip:6443/readyz")" = ok ]; }

# Which of its rights does the network's ServiceAccount use?
audit_policy() {
  cat <<YAML
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: ["system:serviceaccount:kube-system:plumb"]}
- {level: None}
YAML
}

control_plane() {
  hold "$D/cp" 'mount -t proc proc /proc; mount -t tmpfs run /run' --mount --uts --propagation private
  plug cp $cp_ip
  start_unit cp etcd "$peers/etcd" --data-dir "$D/cp/etcd" --log-level warn --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  audit_policy >"$D/cp/audit.yaml"
  start_unit cp kube-apiserver "$peers/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address=$cp_ip --bind-address=0.0.0.0 --secure-port=6443 \
    --tls-cert-file="$P/apiserver.crt" --tls-private-key-file="$P/apiserver.key" --client-ca-file="$P/ca.crt" \
    --kubelet-client-certificate="$P/kubelet-client.crt" --kubelet-client-key="$P/kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP --authorization-mode=Node,RBAC --allow-privileged \
    --service-account-key-file="$P/sa.pub" --service-account-signing-key-file="$P/sa.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-cluster-ip-range="$services" --endpoint-reconciler-type=lease \
    --audit-policy-file="$D/cp/audit.yaml" --audit-log-path="$D/cp/log/audit" --audit-log-mode=blocking
  local controllers="$P/kube-controller-manager.kubeconfig"
  start_unit cp kube-controller-manager "$peers/kube-controller-manager" --kubeconfig="$controllers" \
    --authentication-kubeconfig="$controllers" --authorization-kubeconfig="$controllers" --leader-elect=false \
    --service-account-private-key-file="$P/sa.key" --root-ca-file="$P/ca.crt" --use-service-account-credentials \
    --cluster-signing-cert-file="$P/ca.crt" --cluster-signing-key-file="$P/ca.key" \
    --allocate-node-cidrs --cluster-cidr="$pods" --service-cluster-ip-range="$services" --controllers="$controllers_on"
  start_unit cp kube-scheduler "$peers/kube-scheduler" --kubeconfig="$P/kube-scheduler.kubeconfig" \
    --authentication-kubeconfig="$P/kube-scheduler.kubeconfig" \
    --authorization-kubeconfig="$P/kube-scheduler.kubeconfig" --leader-elect=false
  forward
}

# The API on a port of the caller's 127.0.0.1: a unix socket has no network namespace, so it joins the two.
forward() {
  start_unit cp api-socket socat "UNIX-LISTEN:$D/api.sock,fork,backlog=128" "TCP:$cp_ip:6443"
  until_ok 60 "the API's socket" test -S "$D/api.sock"
  setsid socat -d -d TCP-LISTEN:0,bind=127.0.0.1,fork,backlog=128 "UNIX-CONNECT:$D/api.sock" \
    </dev/null >"$D/log/forward" 2>&1 &
  echo $! >"$D/forward.pid"
  until_ok 60 "the API's port" grep -q 'listening on' "$D/log/forward"
  local port
  port=$(sed -n 's/.*listening on .*127\.0\.0\.1:\([0-9]*\).*/\1/p' "$D/log/forward" | head -1)
  kubeconfig_for admin "https://127.0.0.1:$port" "$D/kubeconfig"
}

# --- nodes -----------------------------------------------------------------------------------------------------

# A subtree of its own in every hierarchy (version 1) or in the one (version 2), where kubelet puts its pods.
cgroups() {
  local group=plumb-$name-$1 hierarchy file
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    cgroup2_controllers
    mkdir -p "/sys/fs/cgroup/$group"
    return
  fi
  for hierarchy in /sys/fs/cgroup/*/; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy$group"
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$hierarchy$group/$file" ] || cat "$hierarchy$file" >"$hierarchy$group/$file"
    done
  done
}

# Version 2: a group whose children have controllers holds no process itself, except the true root. In a container
# the processes of its root move to a leaf first, as they do for every runtime within a container.
cgroup2_controllers() {
  local root=/sys/fs/cgroup controller pid
  if [ -e $root/cgroup.type ]; then
    mkdir -p $root/init
    while read -r pid; do echo "$pid" >$root/init/cgroup.procs 2>/dev/null || :; done <$root/cgroup.procs
  fi
  for controller in $(cat $root/cgroup.controllers); do
    echo "+$controller" >$root/cgroup.subtree_control || die "cgroup controller $controller cannot be delegated"
  done
}

containerd_settings() {
  cat <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
TOML
}

kubelet_settings() {
  cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $P/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $P/node-$1.crt
tlsPrivateKeyFile: $P/node-$1.key
clusterDNS: [$dns]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /plumb-$name-$1
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
resolvConf: /etc/resolv.conf
maxPods: 250
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
evictionHard: {memory.available: "50Mi"}
imageGCHighThresholdPercent: 100
YAML
}

# What a machine of its own would have to itself. /var/log/pods too: two kubelets that share it delete each other's
# logs. Mounts that kubelet and containerd make must be seen by pods that mount the host's directories: shared.
node_mounts='
  mount -t proc proc /proc
  mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id
  mount -t overlay etc -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/etc-work" /etc
  # containerd reads the table of mounts, in which those of the machine below /run stay although they are hidden:
  # `ip netns add` leaves one at /run/netns.
  sed "s/^\([^ ]* \)\{4\}\([^ ]*\).*/\2/" /proc/self/mountinfo | sort -r | while read -r at; do
    case $at in /run/*) umount --lazy "$at" ;; esac
  done
  mount -t tmpfs -o mode=755 run /run
  mkdir -p /run/netns /run/lock
  mount --make-shared /run
  for inner in opt var/lib/cni var/lib/containerd var/lib/kubelet var/lib/plumb var/log/pods var/log/containers; do
    mkdir -p "/$inner" "$dir/disk/$inner"
    mount --bind "$dir/disk/$inner" "/$inner"
  done
  mount --make-shared /var/lib/kubelet
  mount --make-shared /var/lib/containerd
  mkdir -p /opt/cni/bin /etc/cni/net.d
  hostname "${dir##*/}"
  sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1'

containerd_answers() { inside "$1" ctr version >/dev/null 2>&1; }

# node NAME IP
node() {
  local node=$1 ip=$2 dir=$D/$1
  mkdir -p "$dir/etc" "$dir/etc-work"
  echo "$ip" >"$dir/ip"
  certificate "node-$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$ip"
  kubeconfig_for "node-$node" "https://$cp_ip:6443" "$dir/kubeconfig"
  containerd_settings >"$dir/containerd.toml"
  kubelet_settings "$node" >"$dir/kubelet.yaml"
  cgroups "$node"
  boot "$node"
  start_unit "$node" containerd containerd -c "$dir/containerd.toml" -l warn
  until_ok 60 "containerd on $node" containerd_answers "$node"
  inside "$node" ctr -n k8s.io image import "$D/pause.tar" >/dev/null
  local node_ip=$ip
  [ -z "$dual" ] || node_ip+=,$(v6 "$ip")
  start_unit "$node" kubelet "$peers/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubeconfig" \
    --hostname-override="$node" --node-ip="$node_ip" --root-dir=/var/lib/kubelet --v=1
}

boot() {
  cat /proc/sys/kernel/random/uuid >"$D/$1/boot_id"
  hold "$D/$1" "$node_mounts" --mount --uts --propagation private
  plug "$1" "$(cat "$D/$1/ip")"
}

reboot() {
  local node=$1 dir=$D/$1 unit
  kill -KILL "$(init_of "$node")"
  until_ok 60 "the end of $node" cable_gone "$node"
  # A machine that boots has no cgroups of pods; kubelet would look for each one's task for 3 s.
  until_ok 60 "the end of the cgroups of $node" no_cgroups "$node"
  boot "$node"
  # What a machine starts by itself when it boots.
  start_unit "$node" containerd
  until_ok 60 "containerd on $node" containerd_answers "$node"
  for unit in "$dir"/*.cmd; do
    unit=$(basename "$unit" .cmd)
    [ "$unit" = containerd ] || start_unit "$node" "$unit"
  done
}

no_cgroups() {
  local group
  for group in /sys/fs/cgroup/plumb-"$name-$1" /sys/fs/cgroup/*/plumb-"$name-$1"; do
    [ ! -d "$group" ] || find "$group" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || return 1
  done
}

cable_gone() { ! nsenter --target "$anchor" --net ip link show "v-$1" >/dev/null 2>&1; }

nodes() { local at; for at in "$D"/*/kubelet.yaml; do basename "${at%/*}"; done; }

# --- commands --------------------------------------------------------------------------------------------------

up() {
  local count=2 owner="" i
  while [ $# -gt 0 ]; do
    case $1 in
      --nodes) count=$2; shift 2 ;;
      --owner) owner=$2; shift 2 ;;
      --controllers) controllers_on=$2; shift 2 ;;
      --dual) dual=yes; pods+=,$pods6; services+=,$services6; shift ;;
      *) die "up: $1 is not known" ;;
    esac
  done
  [ ! -e "$D" ] || die "cluster $name exists; tools/cluster.sh down $name"
  need ip iproute2 containerd containerd runc runc busybox busybox-static socat socat openssl openssl curl curl
  inotify
  peers=$("$tools/peers.sh")
  mkdir -p "$D/log"
  trap '[ $? = 0 ] || down' EXIT
  trap 'exit 1' INT TERM
  if [ -n "$owner" ]; then
    setsid bash -c 'tail --pid="$1" -f /dev/null; exec "$2" down "$3"' _ "$owner" "$me" "$name" \
      </dev/null >/dev/null 2>&1 &
  fi
  python3 "$tools/image.py" $pause "$D/pause.tar" /bin/busybox \
    '{"Entrypoint": ["/bin/busybox", "tail", "-f", "/dev/null"]}'
  underlay
  public_key_infrastructure
  control_plane
  for ((i = 1; i <= count; i++)); do node "node$i" "192.168.1.$((9 + i))"; done
  echo "export KUBECONFIG=$D/kubeconfig"
}

# Every kubelet and containerd takes some instances, and ends when there are none: with the kernel's 128 for all of
# root, the fourth cluster at a time has nodes that never come.
inotify() {
  local limit=/proc/sys/fs/inotify/max_user_instances
  [ "$(cat $limit)" -ge 1024 ] || echo 1024 >$limit || echo "cluster.sh: few clusters at once, for $limit" >&2
}

# Never fails: it also runs after a half-done `up`.
down() {
  local node group
  [ -e "$D" ] || return 0
  [ ! -s "$D/init" ] || kill -KILL "$(cat "$D/init")" 2>/dev/null || :
  [ ! -s "$D/forward.pid" ] || kill "$(cat "$D/forward.pid")" 2>/dev/null || :
  for _ in {1..100}; do
    for group in /sys/fs/cgroup/plumb-"$name"-* /sys/fs/cgroup/*/plumb-"$name"-*; do
      [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || :
    done
    rm -rf "$D" 2>/dev/null || :
    [ -e "$D" ] || compgen -G "/sys/fs/cgroup/*/plumb-$name-*" >/dev/null || return 0
    sleep .1
  done
  echo "cluster.sh: $D or cgroups of $name could not be removed" >&2
}

image() {
  local node
  for node in $(nodes); do inside "$node" ctr -n k8s.io image import "$1" >/dev/null; done
}

routes() {
  local node cidr via kubectl
  kubectl=$("$tools/kubectl.sh")
  for node in $(nodes); do
    for cidr in $("$kubectl" --kubeconfig "$D/kubeconfig" get node "$node" -o 'jsonpath={.spec.podCIDRs[*]}'); do
      via=$(cat "$D/$node/ip")
      case $cidr in *:*) via=$(v6 "$via") ;; esac
      inside cp ip route replace "$cidr" via "$via"
    done
  done
}

usage() { sed -n '2,/^$/{/^#  *[^t ]*[┌│└]/q;s/^# \{0,1\}//p}' "$me"; }

[ $# -ge 2 ] || { usage; exit 2; }
verb=$1 name=$2
shift 2
case $name in *[!a-z0-9-]* | '') die "a cluster's name has letters, digits and -" ;; esac
[ "$(id -u)" = 0 ] || die "needs root: kubelet and containerd do"
D=$top/$name P=$top/$name/pki dual="" anchor=""
[ "$verb" = up ] || [ "$verb" = down ] || [ -s "$D/init" ] || die "no cluster $name; tools/cluster.sh up $name"
[ "$verb" = up ] || anchor=$(cat "$D/init" 2>/dev/null || :)
case $verb in
  up) up "$@" ;;
  down) down ;;
  kubeconfig) echo "$D/kubeconfig" ;;
  in) inside "$@" ;;
  start) start_unit "$@" ;;
  kill) kill_unit "$@" ;;
  image) image "$@" ;;
  routes) routes ;;
  unplug) nsenter --target "$anchor" --net ip link del "v-$1" ;;
  plug) plug "$1" "$(cat "$D/$1/ip")" ;;
  reboot) reboot "$@" ;;
  *) usage; exit 2 ;;
esac
