//! HTTP servers on listeners of ours and of tokio's, and what they know of their connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio_smc::{Config, SmcInfo, SmcListener};

use crate::service::Service;

/// A running server on SMC.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    accepted: Arc<Mutex<Vec<SmcInfo>>>,
}

impl Server {
    /// Serves HTTP/1.1 and HTTP/2 on any port of `host`, until the runtime ends.
    pub(crate) async fn start(host: &str, config: &Config) -> Self {
        let listener = SmcListener::bind_with((host, 0), config).await.unwrap();
        // Room for all who come at once: beyond it the kernel sends SYN cookies, and then a server
        // has nothing that a client could prove itself by.
        rustix::net::listen(&listener, 4096).unwrap();
        let (addr, accepted) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (connections, service) = (Arc::clone(&accepted), Service::new());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.lock().unwrap().push(stream.info());
                tokio::spawn(service.clone().serve(stream));
            }
        });
        Server { addr, accepted }
    }

    /// All connections that it has accepted so far, the oldest first.
    pub(crate) fn accepted(&self) -> Vec<SmcInfo> {
        self.accepted.lock().unwrap().clone()
    }
}

/// The same server on a listener of tokio's.
pub(crate) async fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = Service::new();
    tokio::spawn(async move {
        loop {
            tokio::spawn(service.clone().serve(listener.accept().await.unwrap().0));
        }
    });
    addr
}
