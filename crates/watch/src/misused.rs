//! A command line that cannot be carried out whatever the cluster, the lab and the machine have.

use std::fmt::Display;

/// What is wrong with it, and what would be right. The command ends with 2, as with a flag that does not exist; what was
/// understood and does not hold ends with 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misused(pub String);

impl Misused {
    /// With its causes, of an error that has some.
    pub fn of(error: impl Display) -> Self {
        Self(format!("{error:#}"))
    }
}
