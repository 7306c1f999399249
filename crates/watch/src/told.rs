//! What went wrong, as a person is told: effects before their causes, each said once, and an API server by its own words
//! alone.

use std::error::Error;

/// Many errors of libraries say their cause, and have it as their source as well; that of the API server's refusal shows
/// all that it holds.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let refusal = cause.downcast_ref::<kube::Error>().and_then(super::status_of);
        let words = match refusal {
            Some(status) if status.message.is_empty() => format!("{} {}", status.code, status.reason),
            Some(status) => status.message.clone(),
            None => cause.to_string(),
        };
        if said.is_empty() {
            said = words;
        } else if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        next = if refusal.is_some() { None } else { cause.source() };
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("create pod/web")]
    struct Outer(#[source] kube::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("read /nope: {0}")]
    struct Twice(#[source] std::io::Error);

    #[test]
    fn a_refusal_is_told_in_the_servers_words_and_a_cause_once() {
        let message = "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.x\"";
        let status = kube::core::Status::failure(message, "BadRequest").with_code(400);
        assert_eq!(
            told(&Outer(kube::Error::Api(status.boxed()))),
            "create pod/web: Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
             \"spec.x\""
        );
        let missing = || std::io::Error::from_raw_os_error(2);
        assert_eq!(told(&Twice(missing())), "read /nope: No such file or directory (os error 2)");
    }
}
