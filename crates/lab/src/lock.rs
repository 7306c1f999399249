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
    /// Directories that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Lock {
    /// For whoever changes the lab's directory. Another one who does is waited for, which is told in words.
    pub fn wait(run: &RunDir, tell: impl FnOnce(&str)) -> Result<Self> {
        let file = run.lock();
        let at = || format!("lock {}", file.display());
        let missing = file.ancestors().skip(1).take_while(|path| !path.exists());
        let made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        let mut tell = Some(tell);
        loop {
            if let Some(base) = file.parent() {
                rundir::make_dir(base)?;
            }
            let held = OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
            let held = match held {
                // The last lab of all took the directory with it.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                held => held,
            };
            let held = held.map_err(|error| rundir::refused(error, &file))?;
            match held.try_lock() {
                // The one before may have removed the file: a third then locks another one of its name.
                Ok(()) if is_same(&held, &file).with_context(at)? => {
                    return Ok(Self { held, file, lab: run.path().to_owned(), made });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(tell) = tell.take() {
                        tell(&format!("waiting for another command that starts or ends lab {}", run.name()));
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
            // What another one uses by now is not empty.
            self.made.iter().for_each(|made| _ = fs::remove_dir(made));
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
                        let lock = Lock::wait(run, |_| {}).expect("a lock");
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
        let lock = Lock::wait(&run, |_| {}).expect("a lock");
        run.remove().expect("removed");
        drop(lock);
        assert!(!base.exists() || fs::read_dir(&base).expect("a directory").count() == 0);
        let _ = fs::remove_dir(&base);
        let above = base.join("above");
        fs::create_dir(&base).expect("made");
        drop(Lock::wait(&RunDir::at(above.join("labs").join("mine")), |_| {}).expect("a lock"));
        assert_eq!(
            fs::read_dir(&base).expect("a directory").count(),
            0,
            "nothing is left of a start that was refused"
        );
        fs::remove_dir(&base).expect("empty");
    }
}
