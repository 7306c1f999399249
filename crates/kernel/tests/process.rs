//! Processes and namespaces against the real kernel.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::Duration;

use kernel::mount::Mount;
use kernel::process::{Capabilities, Ended, IdMap, Namespaces, Process, Signal, Spawn, start_time};
use kernel::{Netns, in_netns};

/// Runs a shell script with the given spawn options and returns how it ended and what it printed.
fn shell(script: &str, with: impl FnOnce(Spawn) -> Spawn) -> (Ended, String) {
    let mut output = memory_file();
    let spawn = Spawn::program("/bin/sh").args(["-c", script]);
    let spawn = spawn.file(1, &output).and_then(|spawn| spawn.file(2, &output)).expect("give files");
    let process = with(spawn).start().expect("start");
    let ended = process.wait().expect("wait");
    let mut text = String::new();
    output.rewind().expect("rewind");
    output.read_to_string(&mut text).expect("read");
    (ended, text)
}

fn memory_file() -> File {
    rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd").into()
}

#[test]
fn a_closure_runs_inside_and_the_caller_stays_outside() {
    let outside = Netns::current().and_then(|ns| ns.id()).expect("current");
    let ns = Netns::fresh().expect("fresh");
    assert_ne!(ns.id().expect("id"), outside);
    let inside = in_netns(&ns, || Netns::current().and_then(|ns| ns.id())).expect("run").expect("id");
    assert_eq!(inside, ns.id().expect("id"));
    assert_eq!(Netns::current().and_then(|ns| ns.id()).expect("current"), outside);
    assert!(in_netns(&ns, || panic!("on purpose")).is_err());
    assert_eq!(Netns::current().and_then(|ns| ns.id()).expect("current"), outside);
}

#[test]
fn only_namespace_files_are_namespaces() {
    let error = Netns::open("/etc/hostname").expect_err("a plain file");
    assert!(error.to_string().contains("not a namespace file"), "{error}");
    assert!(Netns::open("/nowhere").is_err());
}

#[test]
fn a_child_has_the_namespaces_host_name_and_mounts_it_was_given() {
    let (ended, text) =
        shell("echo $$; hostname; cat /proc/1/comm; ls -A /tmp; ls /sys/class/net", |spawn| {
            spawn
                .new_namespaces(Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::NET)
                .hostname("node7")
                .mount(Mount::private("/").expect("private"))
                .mount(Mount::proc("/proc").expect("proc"))
                .mount(Mount::sysfs("/sys").expect("sysfs"))
                .mount(Mount::tmpfs("/tmp", "mode=1777").expect("tmpfs"))
                .mount(Mount::make_dir("/tmp/made").expect("mkdir"))
        });
    assert_eq!((ended, text.as_str()), (Ended::Code(0), "1\nnode7\nsh\nmade\nlo\n"));
}

#[test]
fn a_root_of_its_own_can_be_made_from_binds_and_is_read_only() {
    let dir = std::env::temp_dir().join(format!("plumb-root-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a directory");
    let path = |name: &str| dir.join(name);
    let (ended, text) = shell("ls /; echo x > /usr/x || echo refused; pwd", |spawn| {
        let mut mounts = vec![Mount::private("/"), Mount::tmpfs(&dir, "mode=755")];
        for name in ["usr", "lib", "lib64", "bin"] {
            mounts.push(Mount::make_dir(path(name)));
            mounts.push(Mount::bind(format!("/{name}"), path(name), true));
        }
        mounts.extend([Mount::read_only(&dir), Mount::pivot_root(&dir)]);
        spawn
            .new_namespaces(Namespaces::MOUNT)
            .mounts(mounts.into_iter().map(|mount| mount.expect("a good mount")))
            .directory("/usr")
    });
    std::fs::remove_dir(&dir).expect("nothing is mounted or left there");
    assert_eq!(ended, Ended::Code(0));
    assert!(text.starts_with("bin\nlib\nlib64\nusr\n"), "{text}");
    assert!(text.contains("Read-only file system") && text.ends_with("refused\n/usr\n"), "{text}");
}

#[test]
fn capabilities_and_privileges_stay_dropped() {
    let (_, text) = shell("grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status", |spawn| {
        spawn.capabilities(Capabilities::NET_RAW | Capabilities::NET_BIND_SERVICE).no_new_privs()
    });
    let kept = "0000000000002400";
    let expected =
        format!("CapPrm:\t{kept}\nCapEff:\t{kept}\nCapBnd:\t{kept}\nCapAmb:\t{:016x}\nNoNewPrivs:\t1\n", 0);
    assert_eq!(text, expected);
}

#[test]
fn a_confined_program_has_no_keys_and_makes_no_user_namespace() {
    let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; unshare --user true || echo refused; \
                  unshare --user --map-root-user true || echo refused; (echo a child)";
    let (ended, text) = shell(script, Spawn::confined);
    assert_eq!(ended, Ended::Code(0), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| !line.starts_with("unshare: ")).collect();
    assert_eq!(said, ["NoNewPrivs:\t1", "Seccomp:\t2", "refused", "refused", "a child"], "{text}");
}

#[test]
fn what_is_masked_is_empty_and_a_view_is_read_only() {
    let script = "ls /proc/fs | wc -l; cat /proc/version | wc -c; chmod 666 /proc/version || echo refused; \
                  echo 1 > /proc/sys/net/ipv4/ip_forward || echo refused";
    let (ended, text) = shell(script, |spawn| {
        let mounts = [
            Mount::private("/"),
            Mount::mask("/proc/fs"),
            Mount::mask("/proc/version"),
            Mount::mask("/proc/no-such-file"),
            Mount::read_only_view("/proc/sys"),
            Mount::read_only_view("/proc/no-such-directory"),
            Mount::bind("/no-such-source", "/proc", false).map(Mount::optional),
        ];
        let kinds = Namespaces::MOUNT | Namespaces::NET;
        spawn.new_namespaces(kinds).mounts(mounts.into_iter().map(|mount| mount.expect("a good mount")))
    });
    assert_eq!(ended, Ended::Code(0), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| !line.contains("Read-only file system")).collect();
    assert_eq!(said, ["0", "0", "refused", "refused"], "{text}");
}

/// As whoever runs the tests: an ordinary user may map no more than this either.
#[test]
fn a_user_namespace_maps_ids_and_gives_its_namespaces_to_an_ordinary_user() {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (ended, text) = shell("id -u; id -g; hostname; echo $$; cat /proc/self/uid_map", |spawn| {
        let map = |outside| IdMap { inside: 0, outside, count: 1 };
        spawn
            .new_user_namespace(&[map(uid)], &[map(gid)])
            .new_namespaces(Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::NET)
            .ids(0, 0)
            .hostname("rootless")
            .mount(Mount::private("/").expect("private"))
            .mount(Mount::proc("/proc").expect("proc"))
    });
    assert_eq!(ended, Ended::Code(0), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "rootless", "1", "0", &uid.to_string(), "1"]);
}

#[test]
fn exec_joins_the_namespaces_of_a_process() {
    let kinds = Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::NET;
    let holder = Spawn::program("sleep")
        .arg("60")
        .new_namespaces(kinds)
        .hostname("held")
        .mount(Mount::private("/").expect("private"))
        .mount(Mount::proc("/proc").expect("proc"))
        .start()
        .expect("start a holder");
    let (ended, text) =
        shell("hostname; cat /proc/1/comm", |spawn| spawn.join(kinds, &holder).expect("join"));
    holder.signal(Signal::KILL).expect("kill");
    assert_eq!((ended, text.as_str()), (Ended::Code(0), "held\nsleep\n"));
    assert_eq!(holder.wait().expect("wait"), Ended::Signal(9));
    assert!(!holder.signal(Signal::KILL).expect("no error"), "a dead process takes no signal");
}

#[test]
fn an_error_names_the_step() {
    let error = Spawn::program("/no/such/program").start().expect_err("no program");
    assert!(
        error.to_string().contains("start /no/such/program: execute the program: No such file"),
        "{error}"
    );
    let error = Spawn::program("true").directory("/nowhere").start().expect_err("no directory");
    assert!(error.to_string().contains("change to the directory /nowhere"), "{error}");
    let bad = Mount::bind("/nowhere", "/tmp", false).expect("a mount");
    let error = Spawn::program("true").new_namespaces(Namespaces::MOUNT).mount(bad).start();
    assert!(error.expect_err("no source").to_string().contains("bind /nowhere on /tmp"));
}

#[test]
fn a_process_that_cannot_be_noted_never_runs() {
    let mut out = memory_file();
    let mut seen = None;
    let spawn = Spawn::program("/bin/sh").args(["-c", "echo it runs"]).file(1, &out).expect("a file");
    let error = spawn.start_noted(|process| {
        assert!(process.alive());
        seen = Some(process.pid());
        Err(Box::<dyn std::error::Error>::from("the disk is full"))
    });
    assert!(error.expect_err("it is not noted").to_string().contains("the disk is full"));
    assert_eq!(start_time(seen.expect("it was there")), None, "it is gone, and reaped");
    let mut said = String::new();
    out.rewind().and_then(|()| out.read_to_string(&mut said)).expect("readable");
    assert_eq!(said, "");
}

#[test]
fn a_process_is_known_by_pid_and_start_time() {
    let child = Spawn::program("sleep").arg("60").start().expect("start");
    let started = start_time(child.pid()).expect("start time");
    assert!(Process::open_same(child.pid(), started).expect("open").is_some());
    assert!(Process::open_same(child.pid(), started + 1).expect("open").is_none());
    assert!(!child.wait_ended(Duration::ZERO).expect("poll"));
    child.signal(Signal::TERM).expect("signal");
    assert_eq!(child.wait().expect("wait"), Ended::Signal(15));
    assert!(Process::open_same(child.pid(), started).expect("open").is_none());
}

#[test]
fn only_given_files_reach_the_child() {
    let _open = File::open("/dev/null").expect("open");
    let (_, text) = shell("ls /proc/self/fd | wc -l; readlink /proc/self/fd/5", |spawn| {
        spawn.file(5, File::open("/dev/zero").expect("open")).expect("give")
    });
    // ls sees 0, 1, 2, 5 and its own directory.
    assert_eq!(text, "5\n/dev/zero\n");
}

/// The signal belongs to the thread that started the process.
#[test]
fn a_process_dies_with_the_thread_that_started_it() {
    let start = || Spawn::program("sleep").arg("60").death_signal(Signal::KILL).start().expect("start");
    let child = std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            let child = start();
            assert!(child.alive());
            child
        });
        child.join().expect("join")
    });
    assert!(child.wait_ended(Duration::from_secs(5)).expect("poll"));
    assert_eq!(child.wait().expect("wait"), Ended::Signal(9));
}

#[test]
fn an_overlay_takes_directories_of_any_name() {
    let dir = std::env::temp_dir().join(format!("plumb-overlay-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a directory");
    let path = |name: &str| dir.join(name);
    let (lower, upper, work, merged) = (path("a:b,c"), path("up:per"), path("wo,rk"), path("merged"));
    let overlay = Mount::overlay(&[lower.clone(), "/etc".into()], &upper, &work, &merged);
    let mut mounts = vec![Mount::private("/"), Mount::tmpfs(&dir, "")];
    mounts.extend([&lower, &upper, &work, &merged].map(Mount::make_dir));
    mounts.push(overlay);
    let hidden = path("hidden");
    mounts.extend([&hidden, &hidden.join("seen")].map(Mount::make_dir));
    mounts.extend([Mount::tmpfs(&hidden, ""), Mount::unmount(&hidden)]);
    let script = "test -e passwd && echo x > made && ls ../up:per ../hidden";
    let (ended, text) = shell(script, |spawn| {
        let mounts = mounts.into_iter().map(|mount| mount.expect("a good mount"));
        spawn.new_namespaces(Namespaces::MOUNT).mounts(mounts).directory(&merged)
    });
    std::fs::remove_dir(&dir).expect("nothing is mounted or left there");
    assert_eq!((ended, text.as_str()), (Ended::Code(0), "../hidden:\nseen\n\n../up:per:\nmade\n"));
}

/// The program's own descriptor must not be among the numbers that files are given.
#[test]
fn an_open_executable_starts_whatever_files_it_is_given() {
    let mut output = memory_file();
    let mut spawn = Spawn::executable("/bin/sh", "renamed").expect("open").args(["-c", "echo $0"]);
    for number in 3..60 {
        spawn = spawn.file(number, File::open("/dev/null").expect("open")).expect("give");
    }
    let process = spawn.file(1, &output).expect("give").start().expect("start");
    assert_eq!(process.wait().expect("wait"), Ended::Code(0));
    let mut text = String::new();
    output.rewind().expect("rewind");
    output.read_to_string(&mut text).expect("read");
    assert_eq!(text, "renamed\n");
}
