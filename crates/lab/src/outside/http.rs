//! A web server that says who asked: what masquerade did is read off the answer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(10);

pub async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move { tokio::time::timeout(PATIENCE, answer(stream, peer)).await });
    }
}

/// One request, one answer: `outside <our address> <the asker's address>`.
async fn answer(stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let local = stream.local_addr()?;
    // A head of more than 16 KiB is nobody's.
    let mut reader = BufReader::new(stream).take(16 * 1024);
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let body = format!("outside {local} {peer}\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = reader.into_inner().into_inner();
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}
