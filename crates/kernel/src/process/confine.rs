//! What a confined child ([`super::Spawn::confined`]) gets between fork and exec, beside namespaces and capabilities.

use rustix::io::Errno;

use super::child::check;

/// No process without CAP_SYS_PTRACE may look at this one (PR_SET_DUMPABLE, ptrace(2)): among the processes that it
/// joins it would be a copy of its parent with the parent's files open. Exec ends it.
pub(super) fn hide() -> rustix::io::Result<()> {
    // SAFETY: prctl with integers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())
}

/// An empty session keyring instead of the starter's (keyctl_join_session_keyring(3)). A kernel without keys has
/// none to share; an ordinary user's quota may be used up (EDQUOT), and [`filter`] closes the way to the old one.
pub(super) fn new_session_keyring() -> rustix::io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: the null pointer stands for a keyring without a name; no memory is passed.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) }) {
        Err(Errno::NOSYS | Errno::DQUOT) => Ok(()),
        done => done,
    }
}

/// The numbering of system calls that the filter is about (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Calls of x32 carry this bit under x86-64's own architecture (asm/unistd.h).
const X32: u32 = 0x4000_0000;

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on `yes` or `no` instructions further.
const fn jump(test: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: yes, jf: no, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// `struct seccomp_data`: the call's number at 0, the architecture at 4, the low half of the first argument at 16 (both
/// architectures are little endian).
static FILTER: [libc::sock_filter; 15] = [
    statement(LOAD, 4),
    jump(libc::BPF_JEQ, ARCHITECTURE, 0, 11),
    statement(LOAD, 0),
    jump(libc::BPF_JGE, X32, 9, 0),
    jump(libc::BPF_JEQ, libc::SYS_add_key as u32, 9, 0),
    jump(libc::BPF_JEQ, libc::SYS_request_key as u32, 8, 0),
    jump(libc::BPF_JEQ, libc::SYS_keyctl as u32, 7, 0),
    jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, 5, 0),
    jump(libc::BPF_JEQ, libc::SYS_clone as u32, 1, 0),
    jump(libc::BPF_JEQ, libc::SYS_unshare as u32, 0, 2),
    statement(LOAD, 16),
    jump(libc::BPF_JSET, libc::CLONE_NEWUSER as u32, 2, 0),
    statement(RETURN, libc::SECCOMP_RET_ALLOW),
    statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
];

/// What container engines refuse by their default profiles (moby, profiles/seccomp/default_linux.go), as far as no
/// namespace or capability bounds it. Keys have no namespaces: a user's keyring is that of the user on the whole machine
/// (keyrings(7)). In a user namespace of its own a process of root's might mount the cgroups that it is in, and freeze
/// all who are there. clone3 is none (ENOSYS, for which C libraries have clone), since a filter cannot read its flags;
/// nor are calls by another numbering, which would pass the filter by.
pub(super) fn filter() -> rustix::io::Result<()> {
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which it does not write to, before the call returns.
    check(
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) }
            .into(),
    )
}
