//! Connections between routers: members come in at the [`Door`] of the coordinator, and [`connect`] to it.

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

use super::wire::{Down, Ear, Mouth, Opening};
use crate::policy::fleet::{MemberId, ToCoordinator};
use crate::state::tls::{Acceptor, Connector};

/// How long it may take to say who one is, or to be let in.
const PATIENCE: Duration = Duration::from_secs(3);
/// What may wait to be sent on a connection; a peer that takes less is not worth having.
pub(super) const WAITING: usize = 1024;
/// Connections of nobody known yet; of more the oldest ends.
const STRANGERS: usize = 64;
/// After a connection that could not be accepted.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Between two lines about those who were not let in for the same reason.
const QUIET: Duration = Duration::from_secs(5);
/// Of one that does not say who it is.
const SILENT: io::ErrorKind = io::ErrorKind::TimedOut;

/// How the other side's end of a connection looks: with TLS it comes without a word, and what was not read is an end too.
const ENDS: [io::ErrorKind; 3] =
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

/// What happens on connections.
#[derive(Debug)]
pub(super) enum Event {
    /// A member has come in; it is told what is sent here, and the connection ends with this.
    Came(MemberId, u64, mpsc::Sender<Down>),
    /// A member says something.
    Said(MemberId, u64, ToCoordinator),
    /// A member's connection has ended.
    Left(MemberId, u64),
    /// The connection to the coordinator is there; it is told what is sent here, and the connection ends with this.
    Connected(u64, mpsc::Sender<ToCoordinator>),
    /// The coordinator says something.
    Told(u64, Down),
    /// A member's process has ended: nobody listens any more where it did.
    Ended(MemberId),
    /// The connection to the coordinator has ended, or, if that says why, there was none, or it was of no use.
    Lost(u64, Option<String>),
}

/// What every router of a group knows.
#[derive(Clone)]
pub(super) struct Secret(Arc<str>);

impl Secret {
    pub(super) fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    pub(super) fn text(&self) -> String {
        self.0.as_ref().to_owned()
    }

    fn is(&self, other: &str) -> bool {
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        digest(&self.0).ct_eq(&digest(other)).into()
    }
}

/// Where members come in.
pub(super) struct Door {
    pub(super) socket: TcpListener,
    pub(super) tls: Option<Arc<Acceptor>>,
    pub(super) secret: Secret,
    pub(super) events: mpsc::Sender<Event>,
}

impl Door {
    /// Lets members in, for good.
    pub(super) async fn run(self) {
        // Each ends with this, unless it has become known before.
        let mut strangers = VecDeque::<oneshot::Sender<()>>::new();
        let turned_away = Arc::new(Mutex::new(TurnedAway::default()));
        for number in 1.. {
            let (stream, from) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a router cannot be let in");
                    // Out of descriptors, most likely: to ask again at once would find the same.
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            strangers.retain(|stranger| !stranger.is_closed());
            if strangers.len() >= STRANGERS {
                // A router says at once who it is.
                strangers.pop_front();
            }
            let (stays, mut goes) = oneshot::channel();
            strangers.push_back(stays);
            let (tls, secret, events) = (self.tls.clone(), self.secret.clone(), self.events.clone());
            let turned_away = turned_away.clone();
            tokio::spawn(async move {
                let met = tokio::select! {
                    met = timeout(PATIENCE, meet(stream, tls, &secret)) => met.unwrap_or_else(|_| Err(SILENT.into())),
                    _ = &mut goes => Err(SILENT.into()),
                };
                drop(goes);
                match met {
                    Ok((stream, member)) => host(stream, member, number, events).await,
                    // Somebody who looks whether anybody is there.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => {
                        let mut before = turned_away.lock().unwrap_or_else(PoisonError::into_inner);
                        let not_logged = before.note(error.kind(), Instant::now());
                        drop(before);
                        if let Some(not_logged) = not_logged {
                            let what = "somebody who is no router of this group was not let in";
                            tracing::warn!(%from, %error, not_logged, "{what}");
                        }
                    }
                }
            });
        }
    }
}

/// Who was not let in, by what was wrong: anybody can be that as often as they like, and none of them may hide another.
#[derive(Default)]
struct TurnedAway(HashMap<io::ErrorKind, (Option<Instant>, u64)>);

impl TurnedAway {
    /// Takes note of one more. Returns, where it is to be said, how many of its kind there were before that were not.
    fn note(&mut self, kind: io::ErrorKind, now: Instant) -> Option<u64> {
        let (said, unsaid) = self.0.entry(kind).or_default();
        if said.is_some_and(|said| now < said + QUIET) {
            *unsaid += 1;
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(unsaid))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Who is there; an answer says that they are welcome.
async fn meet(
    stream: TcpStream,
    tls: Option<Arc<Acceptor>>,
    secret: &Secret,
) -> io::Result<(Box<dyn Stream>, MemberId)> {
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream).await?),
        None => Box::new(stream),
    };
    let opening: Opening = Ear::new(&mut stream).hear().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !secret.is(&opening.secret) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another secret"));
    }
    let mut mouth = Mouth::new(&mut stream);
    mouth.say(&()).await?;
    mouth.flush().await?;
    Ok((stream, opening.member))
}

/// Passes on what a member says, and what it is told, until either ends.
async fn host(stream: Box<dyn Stream>, member: MemberId, number: u64, events: mpsc::Sender<Event>) {
    let (to_member, told) = mpsc::channel(WAITING);
    if events.send(Event::Came(member.clone(), number, to_member)).await.is_err() {
        return;
    }
    let said = |message| Event::Said(member.clone(), number, message);
    let _ = exchange(stream, told, &events, said).await;
    let _ = events.send(Event::Left(member, number)).await;
}

/// Looks whether a member that is not heard of has ended. A process listens from before it holds anything until it ends; so
/// its machine refuses a connection only after that. Of a machine that does not answer nothing is known.
pub(super) async fn probe(member: MemberId, events: mpsc::Sender<Event>) {
    let connected = timeout(PATIENCE, TcpStream::connect(&*member.name)).await;
    if matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = events.send(Event::Ended(member)).await;
    }
}

/// Connects to the coordinator, as connection `number`, and passes on what is said until either side ends.
pub(super) async fn connect(
    address: Arc<str>,
    tls: Option<Connector>,
    opening: Opening,
    number: u64,
    events: mpsc::Sender<Event>,
) {
    let called = timeout(PATIENCE, call(&address, tls, &opening)).await;
    let stream = match called.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            let _ = events.send(Event::Lost(number, Some(format!("{address}: {error}")))).await;
            return;
        }
    };
    let (to_coordinator, said) = mpsc::channel(WAITING);
    if events.send(Event::Connected(number, to_coordinator)).await.is_err() {
        return;
    }
    let ended = exchange(stream, said, &events, |message| Event::Told(number, message)).await;
    let why = ended.err().filter(|error| !ENDS.contains(&error.kind())).map(|error| format!("{address}: {error}"));
    let _ = events.send(Event::Lost(number, why)).await;
}

async fn call(address: &str, tls: Option<Connector>, opening: &Opening) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match tls {
        Some(tls) => {
            let name = tls.name_for(address).ok_or_else(|| io::Error::other("no name that can be in a certificate"))?;
            Box::new(tokio_rustls::TlsConnector::from(tls.config).connect(name, stream).await?)
        }
        None => Box::new(stream),
    };
    let mut mouth = Mouth::new(&mut stream);
    mouth.say(opening).await?;
    mouth.flush().await?;
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "is not let in: is the secret the same there?");
    match Ear::new(&mut stream).hear::<()>().await {
        Ok(Some(())) => Ok(stream),
        Ok(None) => Err(refused()),
        // With TLS, where the end comes without a word.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(refused()),
        Err(error) => Err(error),
    }
}

/// Until either side ends, or nobody has anything to say any more.
async fn exchange<I, O>(
    stream: Box<dyn Stream>,
    mut out: mpsc::Receiver<O>,
    events: &mpsc::Sender<Event>,
    heard: impl Fn(I) -> Event,
) -> io::Result<()>
where
    I: serde::de::DeserializeOwned,
    O: serde::Serialize,
{
    let (from, to) = split(stream);
    let hear = async {
        let mut ear = Ear::new(from);
        ear.trust();
        while let Some(message) = ear.hear().await? {
            if events.send(heard(message)).await.is_err() {
                break;
            }
        }
        io::Result::Ok(())
    };
    let say = async {
        let mut mouth = Mouth::new(to);
        while let Some(message) = out.recv().await {
            mouth.say(&message).await?;
            while let Ok(message) = out.try_recv() {
                mouth.say(&message).await?;
            }
            mouth.flush().await?;
        }
        io::Result::Ok(())
    };
    tokio::select! { ended = hear => ended, ended = say => ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_were_not_let_in_one_line_is_said_for_each_reason_with_how_many_there_were() {
        let (mut turned_away, now) = (TurnedAway::default(), Instant::now());
        let said: Vec<_> = (0..1000).filter_map(|_| turned_away.note(SILENT, now)).collect();
        assert_eq!(said, [0]);
        assert_eq!(turned_away.note(io::ErrorKind::PermissionDenied, now), Some(0), "which nobody else hides");
        assert_eq!((turned_away.note(SILENT, now + QUIET), turned_away.note(SILENT, now + QUIET)), (Some(999), None));
        assert_eq!(turned_away.note(SILENT, now + QUIET * 2), Some(1));
    }
}
