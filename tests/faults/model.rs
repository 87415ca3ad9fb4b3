//! Models whose connections can be cut and whose listener can go away and come back.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::message::Message;

/// A connection from the router.
pub type RouterConnection = BufReader<TcpStream>;
type ConnectionHandler = Arc<dyn Fn(RouterConnection) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A model server at an address of its own.
pub struct Replica {
    pub address: SocketAddr,
    handler: ConnectionHandler,
    listener: Option<ReplicaListener>,
}

struct ReplicaListener {
    task: JoinHandle<()>,
    close_connections: mpsc::UnboundedSender<()>,
}

impl Replica {
    /// Plays each connection as `play` does.
    pub async fn new<F, R>(play: F) -> Self
    where
        F: Fn(RouterConnection) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let play: ConnectionHandler = Arc::new(move |peer| Box::pin(play(peer)));
        let listening = Some(ReplicaListener::start(listener, play.clone()));
        Self { address, handler: play, listener: listening }
    }

    /// Answers each request, after `takes`, with its name and the request's body.
    pub async fn echo(name: &'static str, takes: Duration) -> Self {
        Self::new(move |mut peer| async move {
            while let Ok(request) = Message::read(&mut peer).await {
                tokio::time::sleep(takes).await;
                if peer.get_mut().write_all(&echo_response(name, &request)).await.is_err() {
                    break;
                }
            }
        })
        .await
    }

    /// Closes every connection; new ones are accepted.
    pub fn close_connections(&self) {
        if let Some(listening) = &self.listener {
            let _ = listening.close_connections.send(());
        }
    }

    /// Closes the listener and every connection.
    pub async fn stop_listening(&mut self) {
        if let Some(listening) = self.listener.take() {
            listening.task.abort();
            // Cancelled, as it should be.
            let _ = listening.task.await;
        }
    }

    /// Listens again at the same address.
    pub async fn listen_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listener = Some(ReplicaListener::start(listener, self.handler.clone()));
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(listening) = &self.listener {
            listening.task.abort();
        }
    }
}

impl ReplicaListener {
    fn start(listener: TcpListener, play: ConnectionHandler) -> Self {
        let (hang_up, mut orders) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        while connections.try_join_next().is_some() {}
                        stream.set_nodelay(true).unwrap();
                        connections.spawn(play(BufReader::new(stream)));
                    }
                    Some(()) = orders.recv() => connections.shutdown().await,
                }
            }
        });
        Self { task, close_connections: hang_up }
    }
}

/// The answer of a model of this name to this request: 200 with its name and the request's body.
pub fn echo_response(name: &str, request: &Message) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name} ", name.len() + 1 + request.body.len())
            .into_bytes();
    answer.extend(&request.body);
    answer
}
