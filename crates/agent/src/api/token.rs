//! A token in a file, which whoever made it renews: the kubelet does, for a pod's own.
//!
//! It is read for every request: they are few, and then no clock says whether it is still good. kube-rs keeps it until
//! one minute has passed on the clock that people set; set back by a year, it would send the same token for a year,
//! long after that has expired.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};

#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<RwLock<HeaderValue>>,
}

impl TokenFile {
    pub fn open(path: PathBuf) -> Result<Self> {
        let last = Arc::new(RwLock::new(read(&path)?));
        Ok(Self { path, last })
    }

    /// Signs a request. A file that cannot be read now leaves the last token, which may well be good.
    pub fn sign<B>(&self, mut request: Request<B>) -> Request<B> {
        self.put(request.headers_mut());
        request
    }

    fn put(&self, headers: &mut HeaderMap) {
        match read(&self.path) {
            Ok(token) => {
                headers.insert(AUTHORIZATION, token.clone());
                *self.last.write().unwrap_or_else(PoisonError::into_inner) = token;
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the last token once more");
                let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
                headers.insert(AUTHORIZATION, last.clone());
            }
        }
    }
}

fn read(path: &std::path::Path) -> Result<HeaderValue> {
    let at = || {
        format!("the API's token in {}: see that the pod's service account token is mounted", path.display())
    };
    let text = std::fs::read_to_string(path).with_context(at)?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim())).with_context(at)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_token_is_sent_at_once_and_a_lost_file_leaves_the_last() {
        let path = std::env::temp_dir().join(format!("plumb-token-{}", std::process::id()));
        std::fs::write(&path, "one\n").unwrap();
        let file = TokenFile::open(path.clone()).unwrap();
        let sent = || {
            let request = file.sign(Request::new(()));
            request.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
        };
        assert_eq!(sent(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(sent(), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(sent(), "Bearer two");
        let error = format!("{:#}", TokenFile::open(path).unwrap_err());
        assert!(error.contains("plumb-token") && error.contains("service account"), "{error}");
    }
}
