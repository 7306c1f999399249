//! The last lines of the agent's own log, kept so that `plumb sysdump` can read them through the API: a node's log
//! files are out of its reach.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// At about 150 bytes each, 300 KB.
const LINES: usize = 2000;

static JOURNAL: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Writes to stderr and remembers. One write is one line, as tracing's formatter does it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Journal;

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = JOURNAL.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(bytes).into_owned());
        drop(lines);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What was written last, oldest line first.
pub fn recent() -> String {
    JOURNAL.lock().unwrap_or_else(PoisonError::into_inner).iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        for number in 0..LINES + 2 {
            Journal.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        let kept = recent();
        assert_eq!(kept.lines().count(), LINES);
        assert!(!kept.contains("line 1\n") && kept.ends_with(&format!("line {}\n", LINES + 1)), "{kept}");
    }
}
