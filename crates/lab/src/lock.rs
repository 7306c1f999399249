//! One command at a time makes, mends or removes a lab: by a lock on a file beside its directory, which comes and goes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::rundir::{self, RunDir};

const GLANCE: Duration = Duration::from_millis(20);

/// Held until dropped, and by nobody who has died. The last of a lab that is gone removes the file as well.
#[derive(Debug)]
pub struct Lock {
    held: File,
    file: PathBuf,
    lab: PathBuf,
}

impl Lock {
    /// For whoever changes the lab's directory. Another one who does is waited for, which is said.
    pub fn wait(run: &RunDir) -> Result<Self> {
        let file = run.lock();
        let at = || format!("lock {}", file.display());
        if let Some(base) = file.parent() {
            rundir::make_dir(base)?;
        }
        let mut told = false;
        loop {
            let held = OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
            let held = held.map_err(|error| rundir::refused(error, &file))?;
            match held.try_lock() {
                // The one before may have removed the file: a third then locks another one of its name.
                Ok(()) if is_same(&held, &file).with_context(at)? => {
                    return Ok(Self { held, file, lab: run.path().to_owned() });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!("waiting for another command that starts or ends lab {}", run.name());
                    }
                    std::thread::sleep(GLANCE);
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(at),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.lab.exists() && is_same(&self.held, &self.file).unwrap_or(false) {
            // A lock that stays is in nobody's way.
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn is_same(held: &File, path: &Path) -> io::Result<bool> {
    let held = held.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_left_of_a_lab_that_is_gone() {
        let base = std::env::temp_dir().join(format!("plumb-lock-{}", std::process::id()));
        let run = RunDir::at(base.join("mine"));
        let busy = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (run, busy) = (&run, &busy);
                scope.spawn(move || {
                    for round in 0..50 {
                        let lock = Lock::wait(run).expect("a lock");
                        assert!(!busy.swap(true, Ordering::SeqCst), "two at once");
                        // As `up` and `down` do.
                        match (thread + round) % 2 {
                            0 => fs::create_dir_all(run.path()).expect("made"),
                            _ => run.remove().expect("removed"),
                        }
                        busy.store(false, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        let lock = Lock::wait(&run).expect("a lock");
        run.remove().expect("removed");
        drop(lock);
        assert_eq!(fs::read_dir(&base).expect("a directory").count(), 0);
        fs::remove_dir(&base).expect("empty");
    }
}
