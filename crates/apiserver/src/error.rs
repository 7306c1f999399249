//! What can go wrong outside of a request. Inside one, everything is a [`crate::status::Failure`].

use std::path::PathBuf;

use thiserror::Error as ThisError;

/// A failure of the API process itself; each names the stage, the object and the next step.
#[derive(Debug, ThisError)]
pub enum Error {
    #[error("API credentials: {path}: {source}; check that the run directory exists and is yours")]
    CredentialFile { path: PathBuf, source: std::io::Error },
    #[error("API credentials: cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("API credentials: {path}: {cause}; delete the directory to have new ones made")]
    CredentialContent { path: PathBuf, cause: String },
    #[error("API TLS: {0}; delete the credentials directory to have new ones made")]
    Tls(#[from] rustls::Error),
    #[error(
        "API storage {path}: {source}; check that no other API process has it open, and the disk's space"
    )]
    Storage { path: PathBuf, source: rusqlite::Error },
    #[error("API storage {path}: {cause}; restore the file or delete it to start empty")]
    StoredObject { path: PathBuf, cause: String },
    #[error(
        "API: the objects that every cluster starts with cannot be made: {0}; delete the store to start empty"
    )]
    Seed(String),
    #[error("API listener {address}: {source}; another process may hold the port")]
    Listen { address: String, source: std::io::Error },
}
