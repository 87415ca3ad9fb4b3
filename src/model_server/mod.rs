//! A sample model server that behaves like Azure's `azmlinfsrv`: for demos, for tests of the router, and to try the
//! router without writing a model.
//!
//! It answers `GET /`, `GET|POST /score` and `GET /swagger.json` over HTTP/1.1. The model is the linear regression of
//! Azure's online-endpoint examples. What it copies from `azmlinfsrv` is what a router has to cope with: only so many
//! scores at once while the excess waits unseen, runs that go on when their client has left, health that answers
//! although the model is busy, and the same headers and errors. Unlike it, connections are kept alive.

mod handler;
mod linear_model;
mod score_executor;
mod swagger;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::handler::{ScoringService, handle_request};
use self::linear_model::LinearModel;
use self::score_executor::ScoreExecutor;
use hyper_util::rt::TokioIo;

/// How long a stopping server waits for running scores.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the server waits when the system has no more connections, so that it does not spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Options of a [`SampleModelServer`].
#[derive(Debug, Clone)]
pub struct ModelServerOptions {
    /// The address to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// The number of scores that run at once, at least 1. More are queued; `GET /` never waits.
    pub concurrency: usize,
    /// How long each score takes.
    pub delay: Duration,
    /// The share of scores that answer 500, 0 to 1.
    pub fail_rate: f64,
    /// Added to each prediction, as another version of the model would differ.
    pub shift: f64,
    /// Whether `POST /score` answers with server-sent events, one per row, instead of one JSON array.
    pub is_streaming: bool,
    /// The deployment that this server belongs to, sent as `x-model-name`.
    pub model_name: Option<String>,
}

/// A model server that is bound to its address and ready to run.
#[derive(Debug)]
pub struct SampleModelServer {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<ScoringService>,
}

impl SampleModelServer {
    /// Checks `options` and binds the address.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or (`InvalidInput`) an option is out of its range.
    pub async fn bind(options: ModelServerOptions) -> io::Result<Self> {
        let address = options.address;
        let scorer = ScoringService::build(options)?;
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener, service: Arc::new(scorer) })
    }

    /// Returns the address of the server, with the port that was chosen for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` completes, then stops accepting and gives running scores 2 seconds to finish.
    ///
    /// # Errors
    ///
    /// None at present: a connection that fails concerns only its client.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let Self { listener, service: scorer, .. } = self;
        let mut connections = JoinSet::new();
        let (stop, stopping) = watch::channel(());
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, scorer.clone(), stopping.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_RETRY_DELAY).await;
                    }
                },
            }
        }
        drop(listener);
        drop(stop);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_TIMEOUT, drained).await.is_err() {
            connections.shutdown().await;
        }
        scorer.executor.abort_all();
        Ok(())
    }
}

impl ScoringService {
    fn build(options: ModelServerOptions) -> io::Result<Self> {
        let ModelServerOptions { concurrency, delay, fail_rate, shift, is_streaming: stream, model_name: name, .. } =
            options;
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if concurrency == 0 {
            return Err(invalid("concurrency: expected at least 1, found 0".into()));
        }
        if !(0.0..=1.0).contains(&fail_rate) {
            return Err(invalid(format!("fail rate: expected a number from 0 to 1, found {fail_rate}")));
        }
        let name = name
            .map(|name| HeaderValue::try_from(&name).map_err(|_| invalid(format!("name: {name:?} cannot be a header"))))
            .transpose()?;
        if !shift.is_finite() {
            return Err(invalid(format!("shift: expected a number, found {shift}")));
        }
        let model = LinearModel::load()?.with_shift(shift);
        Ok(Self {
            executor: Arc::new(ScoreExecutor::new(model, concurrency, delay, fail_rate)),
            is_streaming: stream,
            model_name: name,
        })
    }
}

/// Answers the requests of one connection until it ends or `stopping` loses its sender.
async fn serve_connection(stream: TcpStream, scorer: Arc<ScoringService>, mut stopping: watch::Receiver<()>) {
    // Without this option, events of a stream would be delayed. A socket that refuses it is slower, not broken.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let scorer = scorer.clone();
        async move { Ok::<_, Infallible>(handle_request(&scorer, request).await) }
    });
    // A client may close its sending half and still get its answer. The connection then ends only when the run has
    // ended, from which a router learns that a slot is free again.
    let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
