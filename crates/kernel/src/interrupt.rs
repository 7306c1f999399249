//! Ctrl-C, kill(1) and a terminal that goes: who has a command at work wants to know then what is left of it.
//!
//! A command that may take long either names what is to be said ([`ends_with`]), and a signal ends it at once, or has
//! something to take back, and hears of signals itself ([`is_heard`], [`take`]). It ends with 128 + the signal's number,
//! as a shell tells of one that a signal has ended.

use std::ffi::c_int;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use crate::process::Signal;

/// Those that end a command: Ctrl-C, kill(1), and the end of a terminal or of a session's leader.
const ENDING: [c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// What is said before the end; null: the command hears of signals itself.
static WORDS: AtomicPtr<String> = AtomicPtr::new(ptr::null_mut());
static CAME: AtomicU8 = AtomicU8::new(0);

/// A signal, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted(u8);

impl std::error::Error for Interrupted {}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl Interrupted {
    /// Which one.
    pub fn signal(self) -> Signal {
        let all = [Signal::INT, Signal::TERM, Signal::HUP];
        all.into_iter().find(|signal| signal.as_raw() == i32::from(self.0)).unwrap_or(Signal::TERM)
    }

    /// As shells have it.
    pub fn exit_code(self) -> u8 {
        128 + self.0
    }
}

/// From now on a signal ends this process, after it has said `plumb: interrupted: ` and these words.
pub fn ends_with(words: &str) {
    // A signal may be at work with those before: they stay.
    let words = Box::leak(Box::new(format!("plumb: interrupted: {words}\n")));
    WORDS.store(words, Ordering::SeqCst);
    listen();
}

/// From now on a signal does nothing but to be told by [`take`].
pub fn is_heard() {
    WORDS.store(ptr::null_mut(), Ordering::SeqCst);
    listen();
}

/// The signal that came since the last time.
pub fn take() -> Option<Interrupted> {
    match CAME.swap(0, Ordering::SeqCst) {
        0 => None,
        signal => Some(Interrupted(signal)),
    }
}

fn listen() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| ENDING.into_iter().for_each(hear));
}

/// A shell's background jobs ignore Ctrl-C, and commands below nohup(1) the end of the terminal: that stays so.
fn hear(signal: c_int) {
    // SAFETY: a sigaction is plain data, for which zeros are a value; the kernel writes one and reads one, which live here.
    // The handler is a function of the right shape, and calls nothing that a handler may not (signal-safety(7)).
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &raw mut before) != 0 || before.sa_sigaction == libc::SIG_IGN
        {
            return;
        }
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = came as extern "C" fn(c_int) as usize;
        ours.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const ours, ptr::null_mut());
    }
}

extern "C" fn came(signal: c_int) {
    let number = signal as u8;
    let words = WORDS.load(Ordering::SeqCst);
    if words.is_null() {
        CAME.store(number, Ordering::SeqCst);
        return;
    }
    // SAFETY: the words were leaked by `ends_with`, and are never written again; write(2) and _exit(2) may be called by a
    // handler of a signal.
    unsafe {
        let words = &*words;
        libc::write(2, words.as_ptr().cast(), words.len());
        libc::_exit(i32::from(Interrupted(number).exit_code()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_once_and_what_was_ignored_stays_so() {
        is_heard();
        assert_eq!(take(), None);
        // SAFETY: no memory is touched.
        unsafe { libc::raise(libc::SIGHUP) };
        assert_eq!(take().map(Interrupted::exit_code), Some(129));
        assert_eq!(take(), None);
        // SAFETY: as above; the signal is one that nothing else here looks at.
        unsafe {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            hear(libc::SIGUSR1);
            libc::raise(libc::SIGUSR1);
        }
        assert_eq!(take(), None);
    }
}
