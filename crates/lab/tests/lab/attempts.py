"""What a program in a pod may try against the machine. Prints a line for everything that it should not have got."""
import ctypes, os, platform, stat, sys

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {"add_key": 248, "request_key": 249, "keyctl": 250, "init_module": 175, "kexec_load": 246,
               "open_by_handle_at": 304, "perf_event_open": 298, "bpf": 321, "syslog": 103, "swapon": 167},
    "aarch64": {"add_key": 217, "request_key": 218, "keyctl": 219, "init_module": 105, "kexec_load": 104,
                "open_by_handle_at": 265, "perf_event_open": 241, "bpf": 280, "syslog": 116, "swapon": 224},
}[platform.machine()]


def got(what):
    print("got:", what, flush=True)


def answer(result):
    """Zero, or why not."""
    return 0 if result >= 0 else ctypes.get_errno()


def call(name, *args):
    return answer(libc.syscall(NUMBERS[name], *args))


def opens(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))
        return True
    except OSError:
        return False


def writable_files(top):
    for directory, below, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            if opens(path, os.O_WRONLY):
                got(f"{path} opens for writing")


def switches_of_the_machine():
    for top in ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/sys"]:
        writable_files(top)
    for path in ["/proc/sysrq-trigger", "/proc/mtrr", "/proc/kmsg", "/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/port"]:
        if opens(path, os.O_WRONLY) and not os.path.samefile(path, "/dev/null"):
            got(f"{path} opens for writing")


def hidden_files():
    for name in ["kcore", "keys", "timer_list", "sched_debug", "interrupts", "latency_stats", "timer_stats"]:
        try:
            with open("/proc/" + name, "rb") as file:
                if file.read(64):
                    got(f"/proc/{name} tells of the machine")
        except OSError:
            pass
    for path in ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
                 "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security"]:
        if os.path.isdir(path) and os.listdir(path):
            got(f"{path} shows {os.listdir(path)[:3]}")
    for line in open("/proc/self/cgroup"):
        if not line.rstrip("\n").endswith(":/"):
            got(f"its place among the machine's cgroups: {line.rstrip()}")


def mounts(where):
    """The kernel's list: a path that can be written, and device files that work."""
    own = {"/tmp", "/run", "/var/lib/plumb", "/proc", "/dev/pts", "/dev/shm", "/dev/mqueue"}
    for line in open("/proc/self/mountinfo"):
        fields = line.split(" ")
        path, flags = fields[4], fields[5].split(",")
        if "rw" in flags and path not in own:
            got(f"{where}: {path} is writable")
        # What hides a file is /dev/null itself.
        if "nodev" not in flags and not path.startswith("/dev/") and not os.path.samefile(path, "/dev/null"):
            got(f"{where}: device files on {path}")


def mounting(where):
    REMOUNT_BIND_RW, DETACH = 32 | 4096, 2
    for path in ["/", "/proc/sys", "/sys", "/etc/hosts"]:
        if answer(libc.mount(b"none", path.encode(), None, REMOUNT_BIND_RW, None)) == 0:
            got(f"{where}: {path} made writable")
    for path in ["/proc/sys", "/proc/kcore", "/proc/sysrq-trigger", "/dev/null"]:
        if answer(libc.umount2(path.encode(), DETACH)) == 0:
            got(f"{where}: {path} uncovered")
    os.makedirs("/tmp/m", exist_ok=True)
    for kind, option in [("proc", None), ("sysfs", None), ("cgroup", b"memory"), ("cgroup", b"none,name=x"), ("debugfs", None),
                         ("devtmpfs", None), ("cgroup2", None)]:
        if answer(libc.mount(b"none", b"/tmp/m", kind.encode(), 0, option)) == 0:
            if kind in ("proc", "debugfs", "devtmpfs"):
                got(f"{where}: a fresh {kind}")
            for name in ["release_agent", "kernel/uevent_helper", "cgroup.procs"]:
                if opens("/tmp/m/" + name, os.O_WRONLY) and name != "cgroup.procs":
                    got(f"{where}: {kind}'s {name}")
            libc.umount2(b"/tmp/m", DETACH)


def in_a_user_namespace():
    child = os.fork()
    if child == 0:
        USER, MOUNT, CGROUP, PID = 0x10000000, 0x20000, 0x2000000, 0x20000000
        if answer(libc.unshare(USER | MOUNT | CGROUP | PID)) == 0:
            got("a user namespace of its own")
            grandchild = os.fork()
            if grandchild == 0:
                mounting("own user namespace")
                switches_of_the_machine()
            else:
                os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)


def devices():
    known = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "stdout",
             "stderr"}
    if set(os.listdir("/dev")) - known:
        got(f"/dev has {set(os.listdir('/dev')) - known}")
    mode = stat.S_IMODE(os.stat("/dev/null").st_mode)
    for what, act in [("the mode of /dev/null", lambda: os.chmod("/dev/null", mode)),
                      ("the owner of /dev/null", lambda: os.chown("/dev/null", 0, 0)),
                      ("the mode of what hides /proc/kcore", lambda: os.chmod("/proc/kcore", mode)),
                      ("a file in /dev", lambda: open("/dev/new", "w").close()),
                      ("a change of /etc/hosts", lambda: open("/etc/hosts", "a").close()),
                      ("a device file", lambda: os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))]:
        try:
            act()
            got(what)
        except OSError:
            pass
    with open("/dev/null", "w") as null:
        null.write("still takes everything")


def others():
    """The first process of the pod holds its namespaces, and is the lab's own program with the node's files."""
    for path in ["root/etc", "cwd/etc", "environ", "exe", "map_files"]:
        try:
            path = "/proc/1/" + path
            os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
            got(path)
        except OSError:
            pass
    ATTACH = 16
    if answer(libc.ptrace(ATTACH, 1, None, None)) == 0:
        got("ptrace of process 1")
    for kind in ["mnt", "pid", "net", "user"]:
        try:
            fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
            if answer(libc.setns(fd, 0)) == 0:
                got(f"the {kind} namespace of process 1")
        except OSError:
            pass
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if "plumb" not in os.readlink(f"/proc/{pid}/exe"):
                continue
            # While it runs nobody may write to it (ETXTBSY); what counts is how it could be opened afterwards.
            if os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY == 0:
                got("the lab's own program, once it has ended")
            elif "-v" in sys.argv:
                print("the lab's own program is on a read-only mount")
        except OSError:
            pass


def keys_and_calls():
    EPERM, NO_SUCH_CALL, user_keyring, join_session = 1, 38, ctypes.c_long(-4), 1
    handle = ctypes.create_string_buffer(b"\x08\0\0\0\x01\0\0\0", 16)
    root = os.open("/", os.O_RDONLY)
    tries = {"add_key": (b"user", b"x", b"y", 1, user_keyring), "request_key": (b"user", b"x", None, user_keyring),
             "keyctl": (join_session, None), "init_module": (None, 0, b""), "kexec_load": (0, 0, None, 0),
             "open_by_handle_at": (root, handle, 0), "swapon": (b"/tmp/x", 0), "syslog": (3, ctypes.create_string_buffer(8), 8)}
    for name, args in tries.items():
        why = call(name, *args)
        # A kernel without modules has no call for them.
        if why != EPERM and (why, name) not in [(NO_SUCH_CALL, "init_module"), (NO_SUCH_CALL, "kexec_load")]:
            got(f"{name} answers {os.strerror(why)}")
    clone3 = 435
    if answer(libc.syscall(clone3, None, 0)) != NO_SUCH_CALL:
        got("clone3, whose flags no filter sees")
    if answer(libc.sethostname(b"other", 5)) == 0:
        got("another host name")
    if answer(libc.chroot(b"/tmp")) == 0:
        got("chroot")


for attempt in [switches_of_the_machine, hidden_files, lambda: mounts("pod"), lambda: mounting("pod"), devices, others,
                keys_and_calls, in_a_user_namespace]:
    attempt()
print("tried everything")
