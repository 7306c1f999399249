//! The one place that reads clocks for brains that take `now`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Time since the Unix epoch; a clock before 1970 counts as 1970. Somebody may set it at any moment: for what people
/// read only.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Time since the machine's boot, the same for every process of it, sleep included: what is kept with the boot's id is
/// measured by it, and nobody can set it.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs().min(999_999_999) as u32)
}
