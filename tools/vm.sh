#!/usr/bin/env bash
# Runs a command as root in a virtual machine: for what must not be done to this one (its clock) or cannot (a kernel
# that lacks a part).
#   tools/vm.sh [--without MODULE]… [--file PATH]… -- CMD…
#   tools/vm.sh --fetch               only see to it that the kernel is there, in ~/.cache/plumb-test
# qemu without KVM, one processor, Debian's cloud kernel, and no disk: everything is in the initial RAM file system, that
# is busybox, the kernel's network modules but those left out, and each PATH where it lies here, with its libraries.
# What the command says comes on stdout, its exit code is ours; 125: the machine ended without one. Boots in 10 s.
#
#   ttyS0  the kernel's console ─> a file, shown when the machine ended early
#   ttyS1  the command's output ─> a file, its last line the exit code
set -euo pipefail
package=linux-image-cloud-amd64
limit=1500
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plumb-test
PATH=$PATH:/usr/sbin:/sbin

die() { echo "vm.sh: $*" >&2; exit 125; }

without=() files=() fetch=""
while [ $# -gt 0 ]; do
  case $1 in
    --without) without+=("$2"); shift 2 ;;
    --file) files+=("$2"); shift 2 ;;
    --fetch) fetch=yes; shift ;;
    --) shift; break ;;
    *) die "$1 is not known" ;;
  esac
done
[ $# -gt 0 ] || [ -n "$fetch" ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2; }
[ -n "$fetch" ] || command -v qemu-system-x86_64 >/dev/null || die "missing: apt-get install qemu-system-x86"
busybox=$(command -v busybox) || die "missing: apt-get install busybox-static"

# The kernel that Debian has now, unpacked once; nothing of it is installed.
kernel() {
  exec 9>"$cache/vm.lock"
  flock 9
  [ ! -e "$cache/vm/complete" ] || return 0
  local newest new=$cache/vm.new
  newest=$(apt-cache depends --important $package | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  rm -rf "$new" "$cache/vm"
  mkdir -p "$new"
  (cd "$new" && apt-get -qq download "${newest:-$package}" >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb)
  touch "$new/complete"
  mv "$new" "$cache/vm"
}

# take ROOT FILE: the file and the libraries that it asks for, at the paths that they have here.
take() {
  local file
  { echo "$2"; ldd "$2" 2>/dev/null | grep -o '/[^ )]*' || :; } | while read -r file; do
    mkdir -p "$1${file%/*}"
    cp -Lf "$file" "$1$file"
  done
}

mkdir -p "$cache"
kernel
exec 9>&-
[ -z "$fetch" ] || exit 0
version=$(ls "$cache/vm/lib/modules")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,run,etc,root,lib/modules}
cp -L "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
ln -s /bin/modprobe "$root/sbin/modprobe"

modules=$cache/vm/lib/modules/$version
(cd "$modules" && find kernel/net kernel/lib kernel/crypto kernel/drivers/net/{veth,vxlan}* -name '*.ko*' |
  grep -vE 'net/(bluetooth|wireless|mac80211|ceph|sunrpc|tipc|can)/' | tar -cf - -T - modules.builtin modules.order) |
  { mkdir "$root/lib/modules/$version" && tar -xf - -C "$root/lib/modules/$version"; }
for module in ${without[@]+"${without[@]}"}; do
  find "$root/lib/modules" -name "$module.ko*" | grep -q . || die "the kernel has no module $module"
  find "$root/lib/modules" -name "$module.ko*" -delete
done
"$busybox" depmod -b "$root" "$version"
for file in ${files[@]+"${files[@]}"}; do take "$root" "$file"; done
printf '%q ' "$@" >"$root/command"

cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
hostname vm
ip link set lo up
stty -F /dev/ttyS1 raw
sh /command </dev/null >/dev/ttyS1 2>&1
echo "exit $?" >/dev/ttyS1
reboot -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$work/initrd"

timeout "$limit" qemu-system-x86_64 -M pc,hpet=off -accel tcg,tb-size=256 -cpu qemu64 -smp 1 -m 2048 -nodefaults -display none -no-reboot \
  -kernel "$cache/vm/boot/vmlinuz-$version" -initrd "$work/initrd" \
  -append "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check" \
  -serial "file:$work/console" -serial "file:$work/output" </dev/null >"$work/qemu" 2>&1 || :
code=$(tail -n 1 "$work/output" 2>/dev/null | sed -n 's/^exit \([0-9]*\)$/\1/p')
if [ -z "$code" ]; then
  tail -n 20 "$work"/{qemu,console,output} >&2
  die "the machine ended without a result, within $limit s"
fi
sed '$d' "$work/output"
exit "$code"
