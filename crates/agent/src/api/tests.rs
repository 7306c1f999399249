use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;

#[test]
fn an_address_may_be_short() {
    for (text, whole) in [
        ("https://192.0.2.1:6443", "https://192.0.2.1:6443/"),
        ("192.0.2.1:6443", "https://192.0.2.1:6443/"),
        ("https://[fd00::1]:6443/", "https://[fd00::1]:6443/"),
    ] {
        assert_eq!(server(text).unwrap().to_string(), whole);
    }
    for wrong in ["", "ftp://x", "https://", "a b"] {
        assert!(server(wrong).unwrap_err().to_string().contains("https://HOST:PORT"), "{wrong}");
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

fn clients(addresses: &[std::net::SocketAddr]) -> Vec<Client> {
    let configs = addresses.iter().map(|at| Config::new(format!("http://{at}").parse().unwrap()));
    configs.map(|config| connect::client(config).unwrap()).collect()
}

#[tokio::test]
async fn a_dead_address_is_left_for_the_next() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (alive, answer) = one_answer();
    let client = failing_over(clients(&[dead, alive]));
    let request = Request::get("/version").body(Vec::new()).unwrap();
    let value: serde_json::Value = client.request(request).await.unwrap();
    assert_eq!(value, serde_json::json!({}));
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
