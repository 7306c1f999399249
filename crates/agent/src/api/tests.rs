use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

#[tokio::test]
async fn the_api_is_known_in_numbers() {
    for (text, socket) in [
        ("https://192.168.1.2:6443", "192.168.1.2:6443"),
        ("https://192.168.1.2", "192.168.1.2:443"),
        ("http://[fd00::2]:8080", "[fd00::2]:8080"),
        ("https://[fd00::2]", "[fd00::2]:443"),
    ] {
        let expected: std::net::SocketAddr = socket.parse().expect("an address");
        assert_eq!(super::sockets_of(&server(text).expect(text)).await, [expected], "{text}");
    }
}

#[test]
fn an_address_may_be_short() {
    for (text, whole) in [
        ("https://192.0.2.1:6443", "https://192.0.2.1:6443/"),
        ("192.0.2.1:6443", "https://192.0.2.1:6443/"),
        ("https://[fd00::1]:6443/", "https://[fd00::1]:6443/"),
    ] {
        assert_eq!(server(text).unwrap().to_string(), whole);
    }
    for wrong in ["", "ftp://x", "https://", "a b", "192.0.2.1:https", "https://192.0.2.1:0"] {
        assert!(server(wrong).unwrap_err().to_string().contains("https://192.0.2.10:6443"), "{wrong}");
    }
}

#[test]
fn the_hosts_kubeconfigs_name_servers_and_only_those_are_read() {
    let root = std::env::temp_dir().join(format!("plumb-host-{}", std::process::id()));
    let conf = |server: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: b\nclusters:\n- {{name: a, cluster: {{server: 'https://10.0.0.9:1'}}}}\n\
             - {{name: x, cluster: {{server: '{server}'}}}}\ncontexts:\n- {{name: b, context: {{cluster: x, user: u}}}}\n"
        )
    };
    std::fs::create_dir_all(&root).unwrap();
    // Of kubeadm, and of k3s.
    std::fs::write(root.join("kubelet.conf"), conf("https://10.0.0.1:6443")).unwrap();
    std::fs::write(root.join("kubelet.kubeconfig"), conf("https://10.0.0.2:6443")).unwrap();
    std::fs::write(root.join("other"), conf("https://10.0.0.3:6443")).unwrap();
    let found = of_the_host(&root);
    std::fs::remove_dir_all(&root).unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["https://10.0.0.1:6443/", "https://10.0.0.2:6443/"]);
}

/// A server that answers one request, on a port of its own.
fn one_answer() -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{}")
            .unwrap();
    });
    (address, answer)
}

/// Long enough for a busy machine's other thread to answer in.
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(600);

/// For a server that does not begin to answer, and for one that does not go on.
const NO_ANSWER: connect::Patience =
    connect::Patience { watches: LONG, answers: SHORT, objects: LONG, quiet: LONG };
const NO_MORE: connect::Patience =
    connect::Patience { watches: LONG, answers: LONG, objects: LONG, quiet: SHORT };
/// For one that answers about an object no further.
const NO_OBJECT: connect::Patience =
    connect::Patience { watches: LONG, answers: LONG, objects: SHORT, quiet: LONG };

/// A server that takes one connection, says this much, and then nothing until the other side has had enough.
fn hanging(said: &'static [u8]) -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut rest = [0; 4096];
        assert!(stream.read(&mut rest).unwrap() > 0);
        stream.write_all(said).unwrap();
        while stream.read(&mut rest).is_ok_and(|read| read > 0) {}
    });
    (address, server)
}

async fn version(client: &Client) -> kube::Result<serde_json::Value> {
    client.request(Request::get("/version").body(Vec::new()).unwrap()).await
}

/// The server waits for the client, which closes while this waits for the server.
async fn ended(client: Client, server: std::thread::JoinHandle<()>) {
    drop(client);
    tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
}

/// In rustls' own words, which an update may change.
#[test]
fn a_certificate_of_another_time_is_known_by_its_error() {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext, UnknownIssuer};
    let at = |seconds| rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    for (error, is) in [
        (ExpiredContext { time: at(2), not_after: at(1) }, true),
        (NotValidYetContext { time: at(1), not_before: at(2) }, true),
        (UnknownIssuer, false),
    ] {
        let words = rustls::Error::InvalidCertificate(error).to_string();
        assert_eq!(watch::is_of_another_time(&words), is, "{words}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_for_the_next() {
    let (hangs, hung) = hanging(b"");
    let (alive, answer) = one_answer();
    let client = failing_over(patient(NO_ANSWER, &[hangs, alive]));
    assert_eq!(version(&client).await.unwrap(), serde_json::json!({}));
    answer.join().unwrap();
    ended(client, hung).await;
}

#[tokio::test]
async fn the_only_server_that_says_nothing_is_named_as_one_that_hangs() {
    let (hangs, hung) = hanging(b"");
    let client = patient(NO_ANSWER, &[hangs]).remove(0);
    let error = version(&client).await.unwrap_err();
    assert!(error.to_string().contains("it hangs or is overloaded"), "{error}");
    ended(client, hung).await;
}

/// What is larger than an MTU that shrank does not arrive on the old connection, while small packets do.
#[tokio::test]
async fn an_object_that_does_not_come_is_asked_for_again_on_a_new_connection() {
    for said in [b"".as_slice(), b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n"] {
        let (hangs, hung) = hanging(said);
        let (alive, answer) = one_answer();
        let client = failing_over(patient(NO_OBJECT, &[hangs, alive]));
        let node = || Request::get("/api/v1/nodes/node1").body(Vec::new()).unwrap();
        let mut got = client.request::<serde_json::Value>(node()).await;
        if got.is_err() {
            got = client.request(node()).await;
        }
        assert_eq!(got.unwrap(), serde_json::json!({}));
        answer.join().unwrap();
        ended(client, hung).await;
    }
}

#[tokio::test]
async fn after_a_watch_that_went_quiet_another_address_is_asked() {
    let (hangs, hung) = hanging(BEGUN);
    let (alive, answer) = one_answer();
    let client = failing_over(patient(NO_MORE, &[hangs, alive]));
    let watch = Request::get("/api/v1/pods?watch=1").body(Body::empty()).unwrap();
    let answered = client.send(watch).await.unwrap();
    answered.into_body().collect_bytes().await.unwrap_err();
    assert_eq!(version(&client).await.unwrap(), serde_json::json!({}));
    answer.join().unwrap();
    ended(client, hung).await;
}

/// Begins this many watches and says nothing in them, and then nothing at all.
fn beginning(watches: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut taken = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            if taken.len() < watches {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(BEGUN);
            }
            taken.push(stream);
        }
    });
    address
}

const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Watches that only were quiet are no trouble; that the server does not begin them again is.
#[tokio::test]
async fn a_quiet_watch_is_begun_again_before_anybody_hears_of_it() {
    let kinds = 6;
    let patience = connect::Patience { watches: SHORT / 10, ..NO_MORE };
    let client = patient(patience, &[beginning(kinds)]).remove(0);
    let (out, mut messages) = tokio::sync::mpsc::channel(64);
    let trouble = async {
        loop {
            if let watch::Message::Trouble(_, error) = messages.recv().await.unwrap() {
                return error.to_string();
            }
        }
    };
    let said = tokio::select! {
        said = trouble => said,
        () = watch::run(client, out) => panic!("the watches ended"),
    };
    assert!(said.contains("it hangs or is overloaded"), "{said}");
}

/// Says nonsense in the first watch of each kind, where a chunk's size should be, and nothing in those that are begun then.
fn breaking() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut kinds, mut taken) = (std::collections::BTreeSet::new(), Vec::new());
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or_default();
            let path =
                String::from_utf8_lossy(&head[..read]).split('?').next().unwrap_or_default().to_owned();
            let _ = stream.write_all(BEGUN);
            if kinds.insert(path) {
                let _ = stream.write_all(b"nonsense\r\n");
            }
            taken.push(stream);
        }
    });
    address
}

/// Nothing changes in the cluster, so that no event shows it.
#[tokio::test]
async fn a_watch_that_is_answered_again_says_so() {
    let client = patient(connect::PATIENCE, &[breaking()]).remove(0);
    let (out, mut messages) = tokio::sync::mpsc::channel(64);
    let said = async {
        let mut said = std::collections::BTreeMap::new();
        while said.len() < 6 || said.values().any(|broken| *broken) {
            match messages.recv().await.unwrap() {
                watch::Message::Trouble(kind, _) => drop(said.insert(kind, true)),
                watch::Message::Answered(kind) => {
                    assert_eq!(said.insert(kind, false), Some(true), "{kind:?} was not broken");
                }
                _ => {}
            }
        }
    };
    tokio::select! {
        said = tokio::time::timeout(Duration::from_secs(60), said) => said.expect("all are answered again"),
        () = watch::run(client, out) => panic!("the watches ended"),
    }
}

fn clients(addresses: &[std::net::SocketAddr]) -> Vec<Client> {
    patient(connect::PATIENCE, addresses)
}

fn patient(patience: connect::Patience, addresses: &[std::net::SocketAddr]) -> Vec<Client> {
    let configs = addresses.iter().map(|at| Config::new(format!("http://{at}").parse().unwrap()));
    configs.map(|config| connect::client(config, patience).unwrap()).collect()
}

#[tokio::test]
async fn a_dead_address_is_left_for_the_next() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (alive, answer) = one_answer();
    let client = failing_over(clients(&[dead, alive]));
    assert_eq!(version(&client).await.unwrap(), serde_json::json!({}));
    answer.join().unwrap();
}

#[tokio::test]
async fn a_write_is_never_said_twice() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (alive, answer) = one_answer();
    let client = failing_over(clients(&[dead, alive]));
    let write = || Request::post("/x").body(b"{}".to_vec()).unwrap();
    client.request::<serde_json::Value>(write()).await.unwrap_err();
    // The caller says it again, and it goes to the next address.
    client.request::<serde_json::Value>(write()).await.unwrap();
    answer.join().unwrap();
}
