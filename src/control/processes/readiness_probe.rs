//! Probes a replica that is starting until it is ready.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const INITIAL_PROBE_INTERVAL: Duration = Duration::from_millis(100);
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A probe without an answer has failed after this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval in which the log says that a replica is still not ready.
const NOT_READY_LOG_INTERVAL: Duration = Duration::from_secs(30);
/// The longest status line that is read.
const MAX_STATUS_LINE_BYTES: usize = 1024;
/// How many bytes of a body are read, and for how long, so that the replica does not log a client that closed the
/// connection early.
const BODY_DRAIN_LIMITS: (u64, Duration) = (64 * 1024, Duration::from_millis(100));

/// Why a replica is not ready.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("it does not answer: {0}")]
    Unreachable(#[from] io::Error),
    #[error("it did not answer within {} s", PROBE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("what it answers is not HTTP/1")]
    NotHttp,
    #[error("it answers with status {0}, not with 2xx")]
    Status(u16),
}

/// Returns as soon as a GET of `path` is answered with 2xx. `replica` names the replica in the log if that takes long.
pub(super) async fn wait_until_ready(address: SocketAddr, path: &str, replica: &str) {
    let started = Instant::now();
    let mut next_log = started + NOT_READY_LOG_INTERVAL;
    let mut interval = INITIAL_PROBE_INTERVAL;
    while let Err(why) = probe_once(address, path).await {
        if Instant::now() >= next_log {
            let seconds = started.elapsed().as_secs();
            tracing::warn!(replica, %address, path, "not ready after {seconds} s: {why}; check readinessPath and that the command listens on {{port}}");
            next_log += NOT_READY_LOG_INTERVAL;
        }
        sleep(interval).await;
        interval = (interval * 3 / 2).min(MAX_PROBE_INTERVAL);
    }
}

async fn probe_once(address: SocketAddr, path: &str) -> Result<(), ProbeError> {
    let status = timeout(PROBE_TIMEOUT, request_status(address, path)).await.map_err(|_| ProbeError::TimedOut)??;
    if (200..300).contains(&status) { Ok(()) } else { Err(ProbeError::Status(status)) }
}

async fn request_status(address: SocketAddr, path: &str) -> Result<u16, ProbeError> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: inference-router\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(MAX_STATUS_LINE_BYTES);
    while !head.contains(&b'\n') && head.len() < MAX_STATUS_LINE_BYTES {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let status = parse_status_line(&head).ok_or(ProbeError::NotHttp)?;
    let (length, drain_timeout) = BODY_DRAIN_LIMITS;
    let _ = timeout(drain_timeout, tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink())).await;
    Ok(status)
}

/// Parses the status in `HTTP/1.1 200 OK`.
fn parse_status_line(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(parse_status_line(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(parse_status_line(b"HTTP/1.0 503\r\n"), Some(503));
        for wrong in ["", "HTTP/1.1", "HTTP/1.1 2", "HTTP/2 200", "GET / HTTP/1.1\r\n", "HTTP/1.1 abc"] {
            assert_eq!(parse_status_line(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// Answers one connection after the other and returns the last request.
    async fn serve_answers(listener: TcpListener, answers: &[&str]) -> String {
        let mut request = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            request.clear();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn a_replica_is_ready_with_its_first_2xx() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = ["HTTP/1.1 503 No\r\n\r\n", "nonsense", "HTTP/1.1 302 Found\r\n\r\n", "HTTP/1.1 204 Yes\r\n\r\n"];
        let (request, ()) =
            tokio::join!(serve_answers(listener, &answers), wait_until_ready(address, "/ready?x=1", "a/b/0"));
        assert!(request.starts_with("GET /ready?x=1 HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_accepts_but_says_nothing_is_slow() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(matches!(probe_once(address, "/").await, Err(ProbeError::TimedOut)));
    }
}
