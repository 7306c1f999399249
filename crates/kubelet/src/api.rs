//! The way to the API: no request waits for ever on a connection that carries answers no longer.
//!
//! An interface that gets a smaller MTU drops what the server still sends in the old size, which no end of the connection
//! learns of; a new connection begins with the size that fits (RFC 9293 §3.7.1). A connection that says nothing for too
//! long is closed, and the next request makes another.

use std::time::Duration;

use kube::client::Body;
use kube::{Client, Config};
use tower::service_fn;

/// How long the API may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before and within an answer.
    pub answers: Duration,
    /// Within a watch: the lab's API sends a bookmark every 30 s.
    pub watches: Duration,
}

/// A lab's API is on the same machine. Leases last for 40 s, so that a node with one lost answer stays Ready.
pub const PATIENCE: Patience = Patience { answers: Duration::from_secs(8), watches: Duration::from_secs(45) };
const CONNECT: Duration = Duration::from_secs(5);

/// Watches have connections of their own: what is quiet too long for an answer is not so for them.
pub fn client(config: &Config, patience: Patience) -> kube::Result<Client> {
    let namespace = config.default_namespace.clone();
    let with = |silence: Duration| {
        let mut config = config.clone();
        (config.connect_timeout, config.read_timeout) = (Some(CONNECT), Some(silence));
        // An idle connection has been quiet, too, when it is used again.
        config.reset_reader_on_write = true;
        Client::try_from(config)
    };
    let (answers, watches) = (with(patience.answers)?, with(patience.watches)?);
    let service = service_fn(move |request: http::Request<Body>| {
        let client = if is_watch(request.uri()) { watches.clone() } else { answers.clone() };
        async move { client.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

fn is_watch(uri: &http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("watch=")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use k8s_openapi::api::core::v1::Node;
    use kube::Api;

    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 35\r\n\r\n";
    const BODY: &str = r#"{"metadata":{"name":"node1"}}      "#;

    /// A server whose first connection carries so much of its second answer and no more; every further one works.
    fn server(carried: &'static str) -> Config {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (at, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut head = [0; 4096];
                    for answer in 0.. {
                        if !stream.read(&mut head).is_ok_and(|read| read > 0) {
                            return;
                        }
                        let whole = format!("{HEAD}{BODY}");
                        let text = if at == 0 && answer > 0 { carried } else { &whole };
                        let _ = stream.write_all(text.as_bytes());
                    }
                });
            }
        });
        Config::new(format!("http://{address}").parse().unwrap())
    }

    #[tokio::test]
    async fn a_connection_that_carries_answers_no_longer_is_left() {
        let patience = Patience { answers: Duration::from_millis(500), ..PATIENCE };
        for carried in ["", HEAD] {
            let nodes: Api<Node> = Api::all(client(&server(carried), patience).unwrap());
            nodes.get("node1").await.expect("the first answer");
            let second = tokio::time::timeout(Duration::from_secs(30), nodes.get("node1"));
            second.await.expect("it is not waited for without end").expect_err("the answer that is lost");
            let third = tokio::time::timeout(Duration::from_secs(30), nodes.get("node1"));
            third.await.expect("in time").expect("on a new connection");
        }
    }

    #[test]
    fn watches_are_known_by_their_query() {
        for (uri, is) in [
            ("/api/v1/pods?fieldSelector=x&watch=true", true),
            ("/api/v1/pods?allowWatchBookmarks=1", false),
            ("/api/v1/nodes/watch", false),
        ] {
            assert_eq!(is_watch(&uri.parse().unwrap()), is, "{uri}");
        }
    }
}
