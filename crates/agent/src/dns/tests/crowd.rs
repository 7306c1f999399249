//! Who takes more than a share, and who forges answers of upstreams.

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::*;

async fn connect(from: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
    socket.connect(VIP.parse().unwrap()).await
}

fn query(id: u16, name: &str) -> Vec<u8> {
    message::encode_query(id, &Name::parse(name).unwrap(), Type::A)
}

#[test]
fn one_client_cannot_take_all_tcp_places() {
    inside(async || {
        crate::serve::raise_file_limit();
        let conf = Conf::new(&[]);
        let server = serve(conf.config(), shared()).unwrap();
        let mut flood = Vec::new();
        for _ in 0..600 {
            flood.push(connect("10.244.2.7").await.unwrap());
        }
        let said = dig("-b 192.168.1.11 +tcp +short payments.shop.svc.cluster.local A").await;
        assert_eq!(said, "10.96.14.7\n", "another client is served");
        assert_eq!(server.counters.get(Count::Crowded), 600 - 64);
        drop(flood);
    });
}

#[test]
fn a_query_of_more_than_4_kib_is_not_waited_for() {
    inside(async || {
        let conf = Conf::new(&[]);
        let _server = serve(conf.config(), shared()).unwrap();
        let mut stream = connect("10.244.2.7").await.unwrap();
        stream.write_u16(u16::MAX).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or_default(), 0, "it is closed");
    });
}

/// Answers names that begin with `good`, and keeps silent about all others.
async fn picky() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.2:53").await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let query = &buffer[..length];
            if query[13..17].eq_ignore_ascii_case(b"good") {
                let reply = message::address_reply(query, 60, &[[192, 0, 2, 1].into()]).unwrap();
                let _ = socket.send_to(&reply, peer).await;
            }
        }
    });
}

#[test]
fn one_client_cannot_take_all_questions_to_upstreams() {
    inside(async || {
        crate::serve::raise_file_limit();
        picky().await;
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        let flooder = tokio::net::UdpSocket::bind("10.244.2.7:0").await.unwrap();
        flooder.connect(VIP).await.unwrap();
        for id in 0..1500u16 {
            flooder.send(&query(id, &format!("bad{id}.outside.test"))).await.unwrap();
            // What is refused is refused at once; the rest waits for upstreams.
            if id % 50 == 49 {
                tokio::task::yield_now().await;
            }
        }
        let mut buffer = [0; 512];
        let length = flooder.recv(&mut buffer).await.unwrap();
        let refused = message::decode(&buffer[..length]).unwrap();
        assert_eq!(refused.rcode, dns::Rcode::SERVFAIL);
        let said = dig("-b 192.168.1.11 +short good.outside.test A").await;
        assert_eq!(said, "192.0.2.1\n", "another client notices nothing");
        let said = dig("-b 10.244.2.7 +short payments.shop.svc.cluster.local A").await;
        assert_eq!(said, "10.96.14.7\n", "the flooder has the cluster's names");
        assert!(server.counters.get(Count::Overload) >= 1000, "{}", server.counters.get(Count::Overload));
    });
}

/// An upstream whose UDP answers have this address and, unless `keeps`, a lower-case question; over TCP it says the
/// truth, 192.0.2.1. Tells what it was asked.
async fn two_faced(over_udp: [u8; 4], keeps: [bool; 2]) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (tell, told) = mpsc::unbounded_channel();
    let socket = tokio::net::UdpSocket::bind("127.0.0.2:53").await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.2:53").await.unwrap();
    let reply = |query: &[u8], address: [u8; 4], keeps: bool| {
        let mut reply = message::address_reply(query, 60, &[address.into()]).unwrap();
        if !keeps {
            let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap();
            reply[12..end].make_ascii_lowercase();
        }
        reply
    };
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _ = tell.send(buffer[..length].to_vec());
            let _ = socket.send_to(&reply(&buffer[..length], over_udp, keeps[0]), peer).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.unwrap();
            let reply = reply(&query, [192, 0, 2, 1], keeps[1]);
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    told
}

const LONG: &str = "a-name-of-letters-enough-to-be-drawn.outside.test";

#[test]
fn upstreams_are_asked_with_drawn_case_and_clients_see_their_own() {
    inside(async || {
        let mut asked = two_faced([192, 0, 2, 1], [true, true]).await;
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        let said = dig(&format!("{LONG} A")).await;
        assert!(said.contains(&format!("\n{LONG}. ")) && said.contains("192.0.2.1"), "{said}");
        let query = asked.recv().await.unwrap();
        assert!(query.iter().any(u8::is_ascii_uppercase) && query.iter().any(u8::is_ascii_lowercase));
        assert_eq!(server.counters.get(Count::UpstreamTcp), 0);
    });
}

#[test]
fn an_answer_of_another_case_is_not_believed_but_asked_for_over_tcp() {
    inside(async || {
        let _asked = two_faced([192, 0, 2, 66], [false, true]).await;
        let conf = Conf::new(&["127.0.0.2"]);
        let _server = serve(conf.config(), shared()).unwrap();
        for name in [LONG.to_owned(), format!("other.{LONG}")] {
            assert_eq!(dig(&format!("+short {name} A")).await, "192.0.2.1\n", "the other one is forged");
        }
    });
}

#[test]
fn an_upstream_that_keeps_no_case_is_asked_over_tcp_once() {
    inside(async || {
        let _asked = two_faced([192, 0, 2, 1], [false, false]).await;
        let conf = Conf::new(&["127.0.0.2"]);
        let server = serve(conf.config(), shared()).unwrap();
        for name in [LONG.to_owned(), format!("other.{LONG}")] {
            assert_eq!(dig(&format!("+short {name} A")).await, "192.0.2.1\n");
        }
        assert_eq!(server.counters.get(Count::UpstreamTcp), 1);
    });
}
