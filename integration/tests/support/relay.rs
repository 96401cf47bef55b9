//! SMC in, TCP out: what lets a program that knows no SMC stand behind a stream on loopback-ism.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_smc::{Config, SmcListener, TransportWatch};

/// A running relay. Of each stream that it accepts the watch can be had.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    accepted: mpsc::UnboundedReceiver<TransportWatch>,
}

impl Relay {
    /// Copies both ways between clients and the server at `upstream`, until the runtime ends.
    pub(crate) async fn start(config: &Config, upstream: SocketAddr) -> Self {
        let listener = SmcListener::bind_with("127.0.0.1:0", config).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (accept, accepted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                // The test may want no more of them.
                let _ = accept.send(client.watch());
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(upstream).await.unwrap();
                    server.set_nodelay(true).unwrap();
                    // Either side may cut the connection; what that means is for the client to say.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Relay { addr, accepted }
    }

    /// The server's end of the next connection.
    pub(crate) async fn accepted(&mut self) -> TransportWatch {
        self.accepted.recv().await.expect("the relay runs")
    }
}
