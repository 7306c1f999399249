//! What went wrong, as a person is told: effects before their causes, each said once, and an API server by its own words
//! alone.

use std::error::Error;

use kube::config::KubeconfigError;

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
            None => misread(cause).unwrap_or_else(|| cause.to_string()),
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

/// Of text that is no YAML, or not of the shape that was asked for.
fn misread(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(KubeconfigError::Parse(error)) = error.downcast_ref() {
        return Some(yaml(error));
    }
    error.downcast_ref().map(yaml)
}

/// What is wrong with a text and at which line and column, in one line: the parser would draw a picture of several.
pub fn yaml(error: &serde_saphyr::Error) -> String {
    let plain = serde_saphyr::render_options! {
        formatter: &serde_saphyr::UserMessageFormatter,
        snippets: serde_saphyr::SnippetMode::Off,
    };
    let said = error.render_with_options(plain);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!("it cannot be read as YAML: {}", lines.join("; "))
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn a_text_that_cannot_be_read_is_told_in_one_line_with_its_place() {
        let wrong = "apiVersion: v1\nkind: Config\nclusters:\n- name: a\n  cluster: {server: [\nusers: []\n";
        let types = "apiVersion: v1\nkind: Config\nclusters: 7\n";
        for (text, line) in [(wrong, "at line "), (types, "at line 3, column 11")] {
            let error = Kubeconfig::from_yaml(text).expect_err("no kubeconfig");
            let said = told(&error);
            assert!(said.starts_with("it cannot be read as YAML: ") && said.contains(line), "{said}");
            assert!(!said.contains(['\n', '^', '|']), "{said}");
        }
        let error = serde_saphyr::from_multiple::<serde_json::Value>("a: b\n\tc: [\n").expect_err("a tab");
        let said = told(&error);
        assert!(said.contains("at line 1, column 4") && !said.contains(['\n', '^', '|']), "{said}");
    }

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
