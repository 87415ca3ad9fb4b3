//! The listener of the in-memory API server.

mod handlers;
mod store;
mod watches;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use store::{InjectedFault, Store, merge, resource};

/// An API server. Ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    pub store: Arc<Store>,
    /// How often it has gone away, and whether it is away.
    outages: watch::Sender<(u64, bool)>,
    /// For how many of these times all connections are broken by now.
    outages_done: watch::Receiver<u64>,
    listening: JoinHandle<()>,
}

impl ApiServer {
    /// With the namespaces `default` and `kube-system`, and nothing else.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(Store::new());
        let presence = watch::Sender::new((0, false));
        let (breaks, broken) = watch::channel(0);
        let listening = tokio::spawn(listen(listener, store.clone(), presence.subscribe(), breaks));
        Self { address, store, outages: presence, outages_done: broken, listening }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file for `KUBECONFIG`.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {"token": "token-of-the-test"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Every connection breaks, new ones at once; what is stored stays. (The port stays taken: another would else get it.)
    pub async fn set_unavailable(&self) {
        self.outages.send_modify(|(times, is_away)| (*times, *is_away) = (*times + 1, true));
        let (times, _) = *self.outages.borrow();
        self.outages_done.clone().wait_for(|broken| *broken >= times).await.unwrap();
    }

    /// Connections are taken again.
    pub fn set_available(&self) {
        self.outages.send_modify(|(_, is_away)| *is_away = false);
    }

    /// Every connection breaks, watches with them; new ones are taken.
    pub async fn drop_connections(&self) {
        self.set_unavailable().await;
        self.set_available();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(
    listener: TcpListener,
    store: Arc<Store>,
    mut presence: watch::Receiver<(u64, bool)>,
    broken: watch::Sender<u64>,
) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // First of all connections break.
            biased;
            _ = presence.changed() => None,
            accepted = listener.accept() => accepted.ok(),
        };
        let (times, is_away) = *presence.borrow_and_update();
        if times > *broken.borrow() {
            connections.shutdown().await;
            broken.send_replace(times);
        }
        let Some((stream, _)) = accepted.filter(|_| !is_away) else { continue };
        let store = store.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| handlers::handle_request(store.clone(), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
