//! Labels: what selectors look at.

use std::collections::BTreeMap;

/// An object's labels, sorted so that two equal sets print alike.
pub type Labels = BTreeMap<String, String>;
