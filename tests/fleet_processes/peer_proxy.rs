//! A TCP proxy between routers, which passes connections on while it is open.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct PeerProxy {
    pub address: SocketAddr,
    /// Where connections go; `None`: it is shut.
    target: watch::Sender<Option<SocketAddr>>,
    task: JoinHandle<()>,
}

impl PeerProxy {
    /// Starts a closed proxy.
    pub async fn start_closed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, seen) = watch::channel(None);
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let mut seen = seen.clone();
                // One that comes while it is shut is closed at once.
                let Some(to) = *seen.borrow_and_update() else { continue };
                tokio::spawn(async move {
                    let pass = async {
                        let (mut from, mut to) = (from, TcpStream::connect(to).await?);
                        from.set_nodelay(true)?;
                        to.set_nodelay(true)?;
                        copy_bidirectional(&mut from, &mut to).await
                    };
                    tokio::select! { _ = pass => {}, _ = seen.changed() => {} }
                });
            }
        });
        Self { address, target: to, task }
    }

    pub fn open_to(&self, to: SocketAddr) {
        self.target.send_replace(Some(to));
    }

    /// Closes the proxy and the connections that pass through it.
    pub fn close(&self) {
        self.target.send_replace(None);
    }
}

impl Drop for PeerProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
