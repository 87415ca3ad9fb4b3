//! Models that count: what each replica has at once, and the most it has ever had.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::message::Message;

/// Routers of a group, at most.
pub const ROUTERS: usize = 3;

/// Model servers of one deployment, and what has gone on at them.
pub struct Board {
    pub addresses: Vec<SocketAddr>,
    counts: Arc<Mutex<Counts>>,
    listening: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// In work at each replica.
    now: Vec<u32>,
    /// The most that ever was.
    pub highest: Vec<u32>,
    /// In work for clients of each router.
    pub by_router: [u32; ROUTERS],
    /// Begun for clients of each router.
    pub begun: [u64; ROUTERS],
    /// Time in work, of all replicas.
    pub worked: Duration,
    /// A router that is left out of `together`.
    without: Option<usize>,
    /// The most that were in work at once since [`Board::watch`], for clients of all routers but one.
    pub together: u32,
}

impl Board {
    /// Replicas that take so long for a request.
    pub async fn start(replicas: usize, takes: Duration) -> Self {
        let counts = Counts { now: vec![0; replicas], highest: vec![0; replicas], ..Counts::default() };
        let counts = Arc::new(Mutex::new(counts));
        let (mut addresses, mut listening) = (Vec::new(), Vec::new());
        for replica in 0..replicas {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let counts = counts.clone();
            listening.push(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, replica, takes, counts.clone()));
                }
            }));
        }
        Self { addresses, counts, listening }
    }

    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    /// From now on counts what is in work at once for clients of all routers but this.
    pub fn watch(&self, without: Option<usize>) {
        let mut counts = self.counts.lock().unwrap();
        counts.without = without;
        counts.together = counts.of_others();
    }

    /// The promise.
    pub fn never_above(&self, cap: u32) {
        let highest = self.counts().highest;
        assert!(highest.iter().all(|highest| *highest <= cap), "more than {cap} at once: {highest:?}");
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

impl Counts {
    fn of_others(&self) -> u32 {
        let others = self.by_router.iter().enumerate().filter(|(router, _)| Some(*router) != self.without);
        others.map(|(_, count)| count).sum()
    }
}

/// Works a request to its end even if the connection is closed meanwhile, as most models do. It is out of work before its
/// answer is sent: the router may send the next at once.
async fn serve(stream: TcpStream, replica: usize, takes: Duration, counts: Arc<Mutex<Counts>>) {
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    while let Ok(request) = Message::read(&mut stream).await {
        // Which router's client it is from, and, if there is more, that it wants a stream.
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let mut words = body.split(' ');
        let router: usize = words.next().unwrap_or_default().parse().unwrap();
        let is_stream = words.next().is_some();
        {
            let mut counts = counts.lock().unwrap();
            counts.now[replica] += 1;
            counts.highest[replica] = counts.highest[replica].max(counts.now[replica]);
            counts.by_router[router] += 1;
            counts.begun[router] += 1;
            counts.together = counts.together.max(counts.of_others());
        }
        let began = Instant::now();
        if is_stream {
            // Works until it is told that nobody wants more.
            let piece = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
            stream.get_mut().write_all(piece).await.unwrap();
            let _ = stream.read(&mut [0]).await;
        } else {
            tokio::time::sleep(takes).await;
        }
        {
            let mut counts = counts.lock().unwrap();
            counts.now[replica] -= 1;
            counts.by_router[router] -= 1;
            counts.worked += began.elapsed();
        }
        if is_stream || stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            break;
        }
    }
}
