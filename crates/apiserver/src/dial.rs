//! How the API reaches a node: the lab knows in which namespace each one listens.

use std::io;
use std::net::SocketAddr;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to a node, whatever it runs over.
pub type Stream = Box<dyn Duplex>;

/// The way to the nodes; `log`, `exec` and the proxies use it.
pub trait NodeDial: Send + Sync + 'static {
    /// The kubelet's HTTP socket of the node.
    fn kubelet(&self, node: &str) -> BoxFuture<'static, io::Result<Stream>>;

    /// A TCP connection to an address on the underlay, such as an agent's.
    fn tcp(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>>;

    /// The command that shows what runs of the lab, for messages.
    fn look(&self) -> String {
        "plumb lab status".to_owned()
    }

    /// A TCP connection from this node to one of its own pods.
    fn pod(&self, node: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>>;
}

/// An API without nodes, for tests of the API alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNodes;

impl NodeDial for NoNodes {
    fn kubelet(&self, node: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let message = format!("this API has no way to node {node}");
        Box::pin(async move { Err(io::Error::new(io::ErrorKind::NotConnected, message)) })
    }

    fn tcp(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        let message = format!("this API has no way to {to}");
        Box::pin(async move { Err(io::Error::new(io::ErrorKind::NotConnected, message)) })
    }

    fn pod(&self, _: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        self.tcp(to)
    }
}
