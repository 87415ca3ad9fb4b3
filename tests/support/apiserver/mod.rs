//! Listens, answers, and misbehaves when told to.

mod answer;
mod store;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

pub use store::{Fault, Store, resource};

/// An API server. Ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    pub store: Arc<Store>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl ApiServer {
    /// With the namespaces `default` and `kube-system`, and nothing else.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(Store::new());
        let listening = Mutex::new(Some(tokio::spawn(listen(listener, store.clone()))));
        Self { address, store, listening }
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

    /// Nobody listens any more, and every connection breaks; what is stored stays.
    pub async fn go_away(&self) {
        let listening = self.listening.lock().unwrap().take();
        if let Some(listening) = listening {
            listening.abort();
            let _ = listening.await;
        }
    }

    /// Listens again, where it did.
    pub async fn come_back(&self) {
        let listener = loop {
            // The old socket may take a moment to be gone.
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        *self.listening.lock().unwrap() = Some(tokio::spawn(listen(listener, self.store.clone())));
    }

    /// Every connection breaks, watches with them; new ones are taken.
    pub async fn drop_connections(&self) {
        self.go_away().await;
        self.come_back().await;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.listening.lock().unwrap().take().into_iter().for_each(|listening| listening.abort());
    }
}

async fn listen(listener: TcpListener, store: Arc<Store>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let store = store.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer::answer(store.clone(), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
