//! How routers speak to each other: over one connection that the member opens, JSON values, each after its length in four
//! bytes. JSON, so that a router of the next version is understood while a group is changed one by one.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::policy::fleet::{MemberId, ToMember};
use crate::state::membership::Overview;

/// The longest value, in bytes: all that a router holds of a hundred thousand replicas.
const LONGEST: u32 = 32 << 20;
/// The longest before it is known who speaks.
const LONGEST_OPENING: u32 = 4 << 10;
/// A flush at this size, or when there is nothing more to say.
const FULL: usize = 64 << 10;

/// The first that a member says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Opening {
    /// What every router of the group knows; empty where none is configured.
    pub(super) secret: String,
    /// Who it is.
    pub(super) member: MemberId,
}

/// What a coordinator says on a connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Down {
    /// Of the protocol.
    Member(ToMember),
    /// How the group is, once a second.
    Group(Overview),
}

/// One side's ear.
pub(super) struct Ear<R> {
    from: R,
    is_trusted: bool,
}

impl<R: AsyncRead + Unpin> Ear<R> {
    /// Of a connection on which nothing was said yet.
    pub(super) fn new(from: R) -> Self {
        Self { from, is_trusted: false }
    }

    /// It is known who speaks.
    pub(super) fn trust(&mut self) {
        self.is_trusted = true;
    }

    /// What is said next; `None` at the end. Not to be dropped before it is ready.
    ///
    /// # Errors
    /// The connection broke, or this is not a router; of what a stranger says nothing is repeated: errors are logged, and
    /// it may be a secret.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut length = [0; 4];
        if self.from.read(&mut length[..1]).await? == 0 {
            return Ok(None);
        }
        self.from.read_exact(&mut length[1..]).await?;
        let length = u32::from_be_bytes(length);
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if length > if self.is_trusted { LONGEST } else { LONGEST_OPENING } {
            return Err(invalid("a router never says that much at once".to_owned()));
        }
        // Grows with what comes: a length alone must not cost memory.
        let mut text = Vec::new();
        let came = (&mut self.from).take(u64::from(length)).read_to_end(&mut text).await?;
        if came < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let heard = serde_json::from_slice(&text).map_err(|error| match self.is_trusted {
            true => invalid(format!("what was said cannot be understood: {error}")),
            false => invalid("what was said is nothing that a router says".to_owned()),
        });
        heard.map(Some)
    }
}

/// One side's mouth.
pub(super) struct Mouth<W> {
    to: W,
    said: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Mouth<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, said: Vec::new() }
    }

    /// Says something, and at once what is said before [`Mouth::flush`], if that is much.
    ///
    /// # Errors
    /// The connection broke, or it is too long.
    pub(super) async fn say<T: Serialize>(&mut self, what: &T) -> io::Result<()> {
        let start = self.said.len();
        self.said.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.said, what)?;
        let length = u32::try_from(self.said.len() - start - 4).ok().filter(|length| *length <= LONGEST);
        let length = length.ok_or_else(|| io::Error::other("too much to be said at once"))?;
        self.said[start..start + 4].copy_from_slice(&length.to_be_bytes());
        if self.said.len() >= FULL { self.flush().await } else { Ok(()) }
    }

    /// Sends what was said.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.said).await?;
        self.said.clear();
        self.to.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(secret: &str) -> Opening {
        Opening { secret: secret.to_owned(), member: MemberId { name: "127.0.0.1:7070".into(), incarnation: 7 } }
    }

    #[tokio::test]
    async fn what_is_said_is_heard_in_order_to_the_end() {
        let (one, other) = tokio::io::duplex(64);
        let said = tokio::spawn(async move {
            let mut mouth = Mouth::new(one);
            for number in 0..100 {
                mouth.say(&opening(&"s".repeat(number))).await.unwrap();
            }
            mouth.flush().await.unwrap();
        });
        let mut ear = Ear::new(other);
        for number in 0..100 {
            let heard: Opening = ear.hear().await.unwrap().unwrap();
            assert_eq!((heard.secret.len(), heard.member.incarnation), (number, 7));
        }
        said.await.unwrap();
        assert!(ear.hear::<Opening>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_is_no_router_is_not_listened_to() {
        let heard = async |said: &[u8]| Ear::new(said).hear::<Opening>().await.map(|heard| heard.is_some());
        assert!(heard(b"GET / HTTP/1.1\r\n\r\n").await.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData));
        assert!(heard(b"\0\0\0\x02{").await.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
        assert!(heard(b"\0\0").await.is_err());
        assert!(heard(b"\0\0\0\x02{}").await.is_err(), "no opening");
        assert!(!heard(b"").await.unwrap());
    }

    #[tokio::test]
    async fn nothing_that_a_stranger_says_is_in_what_is_logged_of_it() {
        let said = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let error = async |said: &[u8]| Ear::new(said).hear::<Opening>().await.unwrap_err().to_string();
        for text in ["\"hunter2\"", "{\"hunter2\": 1}", "{\"secret\": {\"hunter2\": 1}}", "hunter2"] {
            assert_eq!(error(&said(text)).await, "what was said is nothing that a router says");
        }
        assert_eq!(error(b"hunter2").await, "a router never says that much at once");
    }
}
