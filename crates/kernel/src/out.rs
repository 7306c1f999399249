//! What commands print. Whoever reads it may go before the command has ended (`| head`), and std's `println!` panics
//! then: Rust programs ignore SIGPIPE, so the write fails with EPIPE.
//!
//! The macros of this crate have the names of std's, and a crate whose root says `#[macro_use] extern crate kernel;`
//! uses them in all of its modules. Without a reader a command does what it was told to do, and is not heard; one that
//! would print for ever asks [`heard`]. Whatever else keeps output from being written, such as a full disk, is told
//! once, when the command ends, by [`finish`]; a command that would not end by itself ends then.

use std::fmt;
use std::io::{self, ErrorKind, StdoutLock, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

static UNHEARD: AtomicBool = AtomicBool::new(false);
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// `std::println!`, without its panic.
#[macro_export]
macro_rules! println {
    () => { $crate::out::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::out::print(format_args!("{}\n", format_args!($($arg)*))) };
}

/// `std::print!`, without its panic.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::out::print(format_args!($($arg)*)) };
}

/// `std::eprintln!`, without its panic.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::out::complain(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::out::complain(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Prints to the standard output; what [`println!`](crate::println) is made of.
pub fn print(text: fmt::Arguments<'_>) {
    // Nothing comes back from there: `finish` has it.
    let _ = stdout().write_fmt(text);
}

/// Prints to the standard error. Where nobody reads that, there is nobody to tell.
pub fn complain(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Whether somebody may still read the standard output, and all of it so far: what prints for ever ends when nobody does.
pub fn heard() -> bool {
    let out = io::stdout();
    let mut asked = [PollFd::new(&out, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A pipe that no one reads says so before anything is written (poll(2), POLLERR).
    if poll(&mut asked, Some(&at_once)).is_ok_and(|answers| answers > 0) {
        UNHEARD.store(true, Ordering::Relaxed);
    }
    !UNHEARD.load(Ordering::Relaxed) && finish().is_ok()
}

/// Why not all of the output was written; a reader who went is no reason.
pub fn finish() -> Result<(), &'static io::Error> {
    let _ = stdout().flush();
    FAILED.get().map_or(Ok(()), Err)
}

/// The standard output as a writer that does not fail.
#[derive(Debug)]
pub struct Stdout(StdoutLock<'static>);

/// The standard output, locked until this is dropped.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if UNHEARD.load(Ordering::Relaxed) || FAILED.get().is_some() {
            return Ok(bytes.len());
        }
        self.0.write(bytes).or_else(|error| swallow(error, bytes.len()))
    }

    /// A line in one write(2), which whoever reads a pipe gets whole: a piece that ends it, written by itself, has the pieces
    /// before it written first (std's `LineWriter`).
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if UNHEARD.load(Ordering::Relaxed) || FAILED.get().is_some() {
            return Ok(());
        }
        self.0.write_all(bytes).or_else(|error| swallow(error, ()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().or_else(|error| swallow(error, ()))
    }
}

fn swallow<T>(error: io::Error, instead: T) -> io::Result<T> {
    match error.kind() {
        // Whoever writes comes again.
        ErrorKind::Interrupted => return Err(error),
        ErrorKind::BrokenPipe => UNHEARD.store(true, Ordering::Relaxed),
        // Only the first one is told.
        _ => drop(FAILED.set(error)),
    }
    Ok(instead)
}
