//! What the executable and the agent say to each other over the agent's socket: `POST /cni`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One execution of the plugin as it was: the CNI_ variables and the bytes of stdin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub env: BTreeMap<String, String>,
    pub stdin: String,
}

/// What the executable has to print, and how it has to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub exit: u8,
    pub stdout: String,
}
