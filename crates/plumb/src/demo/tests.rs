use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use super::{call, http, serve};

const PATIENCE: Duration = Duration::from_secs(5);

fn http_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve::accept(listener, serve::Face::new("me", true), serve::converse_http).unwrap();
    port
}

fn is_success(code: std::process::ExitCode) -> bool {
    format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS)
}

fn get(port: u16, path: &str) -> bool {
    is_success(call::get(&format!("http://127.0.0.1:{port}{path}"), PATIENCE).unwrap())
}

#[test]
fn readiness_is_switched_by_request() {
    let port = http_server();
    assert!(get(port, "/") && get(port, "/healthz") && get(port, "/readyz"));
    assert!(get(port, "/ready?set=false"));
    assert!(!get(port, "/readyz"));
    assert!(get(port, "/healthz"));
    assert!(get(port, "/ready?set=true") && get(port, "/readyz"));
    assert!(!get(port, "/nowhere") && !get(port, "/ready?set=maybe"));
}

#[test]
fn a_whole_stream_is_accepted_and_a_cut_one_is_not() {
    let port = http_server();
    let target = format!("127.0.0.1:{port}");
    assert!(is_success(call::stream(&target, 0, Some(20_000), PATIENCE).unwrap()));
    // A server that loses line 2.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let lossy: serve::Talk = |stream, _| {
        http::Head::read(&mut std::io::BufReader::new(stream))?;
        let mut out = stream;
        Ok(std::io::Write::write_all(&mut out, b"HTTP/1.1 200 OK\r\n\r\n0\n1\n3\n")?)
    };
    serve::accept(listener, serve::Face::new("lossy", true), lossy).unwrap();
    let error = call::stream(&target, 0, None, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("line \"3\" came as number 2"), "{error}");
}

#[test]
fn lines_and_datagrams_are_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    serve::accept(listener, serve::Face::new("me", true), serve::converse_lines).unwrap();
    assert!(is_success(call::tcp(&target, "hello", PATIENCE).unwrap()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = socket.local_addr().unwrap().to_string();
    serve::datagrams(socket, serve::Face::new("me", true)).unwrap();
    assert!(is_success(call::udp(&target, "hello", PATIENCE).unwrap()));
}

#[test]
fn targets_are_read_or_refused_with_the_right_form() {
    let url = http::Url::parse("http://payments:8080/a?b=c").unwrap();
    assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("payments", 8080, "/a?b=c"));
    assert_eq!(http::Url::parse("http://[::1]:9/").unwrap().host, "::1");
    assert_eq!(http::Url::parse("payments").unwrap().port, 80);
    assert!(http::Url::parse("https://x/").unwrap_err().to_string().contains("speaks http"));
    assert!(http::split_port("payments", None).unwrap_err().to_string().contains("HOST:PORT"));
    assert!(http::split_port("payments:http", None).unwrap_err().to_string().contains("not a port"));
}
