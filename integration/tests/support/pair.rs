//! Connected streams: ours on both ends, or ours and tokio's.

use tokio::net::{TcpListener, TcpStream};
use tokio_smc::{SmcListener, SmcStream, UpgradePolicy};

use crate::lab::Lab;

const ANYWHERE: &str = "127.0.0.1:0";

/// A client and the stream that was accepted for it, both able to move to shared memory.
pub(crate) async fn smc_pair(lab: &Lab) -> (SmcStream, SmcStream) {
    let config = lab.config(UpgradePolicy::FirstTurn);
    let listener = SmcListener::bind_with(ANYWHERE, &config).await.unwrap();
    let client = SmcStream::connect_with(listener.local_addr().unwrap(), &config).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A client of ours at a server of tokio's.
pub(crate) async fn plain_server_pair(lab: &Lab) -> (SmcStream, TcpStream) {
    let listener = TcpListener::bind(ANYWHERE).await.unwrap();
    let config = lab.config(UpgradePolicy::FirstTurn);
    let client = SmcStream::connect_with(listener.local_addr().unwrap(), &config).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A client of tokio's at a server of ours.
pub(crate) async fn plain_client_pair(lab: &Lab) -> (TcpStream, SmcStream) {
    let listener = SmcListener::bind_with(ANYWHERE, &lab.config(UpgradePolicy::FirstTurn)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}
