//! Connections between routers: the coordinator accepts members with its [`PeerListener`], and members connect with
//! [`connect_to_coordinator`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::framing::{CoordinatorFrame, FrameReader, FrameWriter, PeerHandshake};
use crate::policy::fleet::{MemberId, ToCoordinator};
use crate::state::tls::{Acceptor, Connector};

/// How long a handshake may take, on either side.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// The number of messages that may be queued for sending on a connection. A peer that is slower is disconnected.
pub(super) const OUTBOUND_CAPACITY: usize = 1024;
/// The number of connections that may be in the handshake. If there are more, the oldest is closed.
const MAX_PENDING_HANDSHAKES: usize = 64;
/// The delay after a failure to accept a connection.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);
/// The shortest interval between two log lines about connections that were rejected for the same reason.
const REJECTION_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// The error of a connection that is closed because its handshake does not arrive.
const NO_HANDSHAKE: io::ErrorKind = io::ErrorKind::TimedOut;

/// The errors that mean that the peer has closed the connection: with TLS, the end may come without a `close_notify`,
/// and unread data causes a reset.
const DISCONNECT_ERROR_KINDS: [io::ErrorKind; 3] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

/// An event of a connection, which is identified by its number.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// A member has connected. Messages to the member are sent here; the connection ends when the sender is dropped.
    MemberConnected(MemberId, u64, mpsc::Sender<CoordinatorFrame>),
    /// A message of a member was received.
    MemberMessage(MemberId, u64, ToCoordinator),
    /// The connection of a member has ended.
    MemberDisconnected(MemberId, u64),
    /// The connection to the coordinator is open. Messages to the coordinator are sent here; the connection ends when
    /// the sender is dropped.
    CoordinatorConnected(u64, mpsc::Sender<ToCoordinator>),
    /// A frame of the coordinator was received.
    CoordinatorMessage(u64, CoordinatorFrame),
    /// The process of a member has ended: nothing listens on its address any more.
    MemberEnded(MemberId),
    /// The connection to the coordinator has ended; with an error if it could not be opened or has failed.
    CoordinatorDisconnected(u64, Option<String>),
}

/// The secret that all routers of a fleet share.
#[derive(Clone)]
pub(super) struct FleetSecret(Arc<str>);

impl FleetSecret {
    pub(super) fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    pub(super) fn text(&self) -> String {
        self.0.as_ref().to_owned()
    }

    fn matches(&self, other: &str) -> bool {
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        digest(&self.0).ct_eq(&digest(other)).into()
    }
}

/// The listener for connections of members.
pub(super) struct PeerListener {
    pub(super) socket: TcpListener,
    pub(super) tls: Option<Arc<Acceptor>>,
    pub(super) secret: FleetSecret,
    pub(super) events: mpsc::Sender<PeerEvent>,
}

impl PeerListener {
    /// Accepts members forever.
    pub(super) async fn run(self) {
        // A pending handshake is aborted when its sender is dropped.
        let mut pending_handshakes = VecDeque::<oneshot::Sender<()>>::new();
        let rejection_log = Arc::new(Mutex::new(RejectionLog::default()));
        for number in 1.. {
            let (stream, from) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept peer connection");
                    // The likely cause is a lack of file descriptors, so an immediate retry would fail too.
                    tokio::time::sleep(ACCEPT_ERROR_PAUSE).await;
                    continue;
                }
            };
            pending_handshakes.retain(|handshake| !handshake.is_closed());
            if pending_handshakes.len() >= MAX_PENDING_HANDSHAKES {
                // A router sends its handshake at once, so the oldest connection is probably none.
                pending_handshakes.pop_front();
            }
            let (handshake_guard, mut evicted) = oneshot::channel();
            pending_handshakes.push_back(handshake_guard);
            let (tls, secret, events) = (self.tls.clone(), self.secret.clone(), self.events.clone());
            let rejection_log = rejection_log.clone();
            tokio::spawn(async move {
                let handshake = tokio::select! {
                    result = timeout(HANDSHAKE_TIMEOUT, accept_handshake(stream, tls, &secret)) => {
                        result.unwrap_or_else(|_| Err(NO_HANDSHAKE.into()))
                    }
                    _ = &mut evicted => Err(NO_HANDSHAKE.into()),
                };
                drop(evicted);
                match handshake {
                    Ok((stream, member)) => serve_member(stream, member, number, events).await,
                    // A port check, which closes the connection without sending anything.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => {
                        let mut log = rejection_log.lock().unwrap_or_else(PoisonError::into_inner);
                        let not_logged = log.record_rejection(error.kind(), Instant::now());
                        drop(log);
                        if let Some(not_logged) = not_logged {
                            tracing::warn!(%from, %error, not_logged, "rejected peer connection");
                        }
                    }
                }
            });
        }
    }
}

/// The rate limit for log lines about rejected connections, per kind of error: when a line was last logged, and the
/// number of rejections since. Anybody can cause rejections at any rate, and one kind must not hide another.
#[derive(Default)]
struct RejectionLog(HashMap<io::ErrorKind, (Option<Instant>, u64)>);

impl RejectionLog {
    /// Records a rejection. Returns the number of earlier ones of its kind that were not logged, if a line is to be
    /// logged now.
    fn record_rejection(&mut self, kind: io::ErrorKind, now: Instant) -> Option<u64> {
        let (last_logged, not_logged) = self.0.entry(kind).or_default();
        if last_logged.is_some_and(|last| now < last + REJECTION_LOG_INTERVAL) {
            *not_logged += 1;
            return None;
        }
        *last_logged = Some(now);
        Some(std::mem::take(not_logged))
    }
}

trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for S {}

/// Authenticates the peer and answers its handshake. Returns the stream and the identity of the member.
async fn accept_handshake(
    stream: TcpStream,
    tls: Option<Arc<Acceptor>>,
    secret: &FleetSecret,
) -> io::Result<(Box<dyn PeerStream>, MemberId)> {
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn PeerStream> = match tls {
        Some(tls) => Box::new(tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream).await?),
        None => Box::new(stream),
    };
    let opening: PeerHandshake =
        FrameReader::new(&mut stream).read_frame().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !secret.matches(&opening.secret) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another secret"));
    }
    let mut writer = FrameWriter::new(&mut stream);
    writer.write_frame(&()).await?;
    writer.flush().await?;
    Ok((stream, opening.member))
}

/// Relays messages from and to a member until either side ends.
async fn serve_member(stream: Box<dyn PeerStream>, member: MemberId, number: u64, events: mpsc::Sender<PeerEvent>) {
    let (to_member, outbound) = mpsc::channel(OUTBOUND_CAPACITY);
    if events.send(PeerEvent::MemberConnected(member.clone(), number, to_member)).await.is_err() {
        return;
    }
    let to_event = |message| PeerEvent::MemberMessage(member.clone(), number, message);
    let _ = relay_messages(stream, outbound, &events, to_event).await;
    let _ = events.send(PeerEvent::MemberDisconnected(member, number)).await;
}

/// Probes whether the process of an absent member has ended. A process listens from before it holds slots until it
/// ends, so its machine refuses a connection only after that. If the machine does not respond, nothing is known.
pub(super) async fn probe_ended(member: MemberId, events: mpsc::Sender<PeerEvent>) {
    let connected = timeout(HANDSHAKE_TIMEOUT, TcpStream::connect(&*member.name)).await;
    if matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = events.send(PeerEvent::MemberEnded(member)).await;
    }
}

/// Connects to the coordinator as connection `number`, and relays messages until either side ends.
pub(super) async fn connect_to_coordinator(
    address: Arc<str>,
    tls: Option<Connector>,
    opening: PeerHandshake,
    number: u64,
    events: mpsc::Sender<PeerEvent>,
) {
    let dialed = timeout(HANDSHAKE_TIMEOUT, dial(&address, tls, &opening)).await;
    let stream = match dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            let _ = events.send(PeerEvent::CoordinatorDisconnected(number, Some(format!("{address}: {error}")))).await;
            return;
        }
    };
    let (to_coordinator, outbound) = mpsc::channel(OUTBOUND_CAPACITY);
    if events.send(PeerEvent::CoordinatorConnected(number, to_coordinator)).await.is_err() {
        return;
    }
    let ended =
        relay_messages(stream, outbound, &events, |message| PeerEvent::CoordinatorMessage(number, message)).await;
    let error = ended
        .err()
        .filter(|error| !DISCONNECT_ERROR_KINDS.contains(&error.kind()))
        .map(|error| format!("{address}: {error}"));
    let _ = events.send(PeerEvent::CoordinatorDisconnected(number, error)).await;
}

async fn dial(address: &str, tls: Option<Connector>, opening: &PeerHandshake) -> io::Result<Box<dyn PeerStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn PeerStream> = match tls {
        Some(tls) => {
            let name =
                tls.server_name_for(address).ok_or_else(|| io::Error::other("no name that can be in a certificate"))?;
            Box::new(tokio_rustls::TlsConnector::from(tls.config).connect(name, stream).await?)
        }
        None => Box::new(stream),
    };
    let mut writer = FrameWriter::new(&mut stream);
    writer.write_frame(opening).await?;
    writer.flush().await?;
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "is not let in: is the secret the same there?");
    match FrameReader::new(&mut stream).read_frame::<()>().await {
        Ok(Some(())) => Ok(stream),
        Ok(None) => Err(refused()),
        // With TLS, the end may come without a `close_notify`.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(refused()),
        Err(error) => Err(error),
    }
}

/// Sends and receives messages until the connection ends or a channel is closed.
async fn relay_messages<I, O>(
    stream: Box<dyn PeerStream>,
    mut outbound: mpsc::Receiver<O>,
    events: &mpsc::Sender<PeerEvent>,
    to_event: impl Fn(I) -> PeerEvent,
) -> io::Result<()>
where
    I: serde::de::DeserializeOwned,
    O: serde::Serialize,
{
    let (read_half, write_half) = split(stream);
    let receive = async {
        let mut reader = FrameReader::new(read_half);
        reader.set_trusted();
        while let Some(message) = reader.read_frame().await? {
            if events.send(to_event(message)).await.is_err() {
                break;
            }
        }
        io::Result::Ok(())
    };
    let send = async {
        let mut writer = FrameWriter::new(write_half);
        while let Some(message) = outbound.recv().await {
            writer.write_frame(&message).await?;
            while let Ok(message) = outbound.try_recv() {
                writer.write_frame(&message).await?;
            }
            writer.flush().await?;
        }
        io::Result::Ok(())
    };
    tokio::select! { ended = receive => ended, ended = send => ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_were_not_let_in_one_line_is_said_for_each_reason_with_how_many_there_were() {
        let (mut rejection_log, now) = (RejectionLog::default(), Instant::now());
        let logged: Vec<_> = (0..1000).filter_map(|_| rejection_log.record_rejection(NO_HANDSHAKE, now)).collect();
        assert_eq!(logged, [0]);
        assert_eq!(
            rejection_log.record_rejection(io::ErrorKind::PermissionDenied, now),
            Some(0),
            "which nobody else hides"
        );
        assert_eq!(
            (
                rejection_log.record_rejection(NO_HANDSHAKE, now + REJECTION_LOG_INTERVAL),
                rejection_log.record_rejection(NO_HANDSHAKE, now + REJECTION_LOG_INTERVAL)
            ),
            (Some(999), None)
        );
        assert_eq!(rejection_log.record_rejection(NO_HANDSHAKE, now + REJECTION_LOG_INTERVAL * 2), Some(1));
    }
}
