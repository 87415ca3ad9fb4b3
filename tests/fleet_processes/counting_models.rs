//! Models that count the requests in flight at each replica, and the most there have ever been.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::message::Message;

/// The largest number of routers in a fleet.
pub const MAX_ROUTERS: usize = 3;

/// Model servers of one deployment, and what has gone on at them.
pub struct CountingModels {
    pub addresses: Vec<SocketAddr>,
    counts: Arc<Mutex<InFlightCounts>>,
    listener_tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default, Clone)]
pub struct InFlightCounts {
    /// Requests in flight at each replica.
    by_replica: Vec<u32>,
    /// The most requests that were ever in flight at each replica.
    pub max_by_replica: Vec<u32>,
    /// In work for clients of each router.
    pub by_router: [u32; MAX_ROUTERS],
    /// Requests begun for the clients of each router.
    pub started_by_router: [u64; MAX_ROUTERS],
    /// The time that replicas were busy, summed over all of them.
    pub busy_time: Duration,
    /// A router that is left out of `together`.
    excluded_router: Option<usize>,
    /// The most that were in work at once since [`Board::watch`], for clients of all routers but one.
    pub max_of_counted_routers: u32,
}

impl CountingModels {
    /// Replicas that take so long for a request.
    pub async fn start(replicas: usize, takes: Duration) -> Self {
        let counts = InFlightCounts {
            by_replica: vec![0; replicas],
            max_by_replica: vec![0; replicas],
            ..InFlightCounts::default()
        };
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
        Self { addresses, counts, listener_tasks: listening }
    }

    pub fn counts(&self) -> InFlightCounts {
        self.counts.lock().unwrap().clone()
    }

    /// From now on counts what is in work at once for clients of all routers but this.
    pub fn count_without(&self, without: Option<usize>) {
        let mut counts = self.counts.lock().unwrap();
        counts.excluded_router = without;
        counts.max_of_counted_routers = counts.of_counted_routers();
    }

    /// Asserts that no replica ever exceeded its cap.
    pub fn assert_never_above(&self, cap: u32) {
        let highest = self.counts().max_by_replica;
        assert!(highest.iter().all(|highest| *highest <= cap), "more than {cap} at once: {highest:?}");
    }
}

impl Drop for CountingModels {
    fn drop(&mut self) {
        self.listener_tasks.iter().for_each(JoinHandle::abort);
    }
}

impl InFlightCounts {
    fn of_counted_routers(&self) -> u32 {
        let others = self.by_router.iter().enumerate().filter(|(router, _)| Some(*router) != self.excluded_router);
        others.map(|(_, count)| count).sum()
    }
}

/// Works a request to its end even if the connection is closed meanwhile, as most models do. It is out of work before its
/// answer is sent: the router may send the next at once.
async fn serve(stream: TcpStream, replica: usize, takes: Duration, counts: Arc<Mutex<InFlightCounts>>) {
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
            counts.by_replica[replica] += 1;
            counts.max_by_replica[replica] = counts.max_by_replica[replica].max(counts.by_replica[replica]);
            counts.by_router[router] += 1;
            counts.started_by_router[router] += 1;
            counts.max_of_counted_routers = counts.max_of_counted_routers.max(counts.of_counted_routers());
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
            counts.by_replica[replica] -= 1;
            counts.by_router[router] -= 1;
            counts.busy_time += began.elapsed();
        }
        if is_stream || stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            break;
        }
    }
}
