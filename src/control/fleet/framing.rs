//! The framing of messages between routers: JSON values, each after its length as four bytes in network byte order,
//! over a connection that the member opens. JSON allows routers of different versions in one fleet during a rolling
//! upgrade.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::policy::fleet::{MemberId, ToMember};
use crate::state::membership::FleetOverview;

/// The largest frame, in bytes: enough for all slots that a router holds of a hundred thousand replicas.
const MAX_FRAME_BYTES: u32 = 32 << 20;
/// The largest frame before the peer is authenticated, in bytes.
const MAX_HANDSHAKE_BYTES: u32 = 4 << 10;
/// The size of buffered frames at which they are sent without an explicit flush, in bytes.
const FLUSH_THRESHOLD_BYTES: usize = 64 << 10;

/// The first frame on a connection, sent by the member.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PeerHandshake {
    /// The secret that all routers of the fleet share; empty if none is configured.
    pub(super) secret: String,
    /// The identity of the member.
    pub(super) member: MemberId,
}

/// A frame from the coordinator.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum CoordinatorFrame {
    /// A message of the fleet protocol.
    Message(ToMember),
    /// The overview of the fleet, sent once a second.
    Overview(FleetOverview),
}

/// A reader of frames.
pub(super) struct FrameReader<R> {
    source: R,
    is_trusted: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Creates the reader of a new connection, whose peer is not authenticated yet.
    pub(super) fn new(source: R) -> Self {
        Self { source, is_trusted: false }
    }

    /// Marks the peer as authenticated: larger frames and detailed errors are allowed.
    pub(super) fn set_trusted(&mut self) {
        self.is_trusted = true;
    }

    /// Reads the next frame; `None` at the end of the connection. Not cancellation-safe: the future must not be dropped
    /// before it completes.
    ///
    /// # Errors
    /// Fails if the connection breaks or the frame is invalid. Errors are logged, so before authentication they never
    /// contain what the peer has sent, which may be a secret.
    pub(super) async fn read_frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut length = [0; 4];
        if self.source.read(&mut length[..1]).await? == 0 {
            return Ok(None);
        }
        self.source.read_exact(&mut length[1..]).await?;
        let length = u32::from_be_bytes(length);
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        if length > if self.is_trusted { MAX_FRAME_BYTES } else { MAX_HANDSHAKE_BYTES } {
            return Err(invalid("frame too large".to_owned()));
        }
        // The buffer grows with the received bytes: a length alone must not cost memory.
        let mut text = Vec::new();
        let received = (&mut self.source).take(u64::from(length)).read_to_end(&mut text).await?;
        if received < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = serde_json::from_slice(&text).map_err(|error| match self.is_trusted {
            true => invalid(format!("invalid frame: {error}")),
            false => invalid("not a frame of a router".to_owned()),
        });
        parsed.map(Some)
    }
}

/// A writer of frames.
pub(super) struct FrameWriter<W> {
    sink: W,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { sink, buffer: Vec::new() }
    }

    /// Buffers a frame. It is sent by [`Self::flush`], or at once if [`FLUSH_THRESHOLD_BYTES`] are buffered.
    ///
    /// # Errors
    /// Fails if the connection breaks, or if the frame is too large.
    pub(super) async fn write_frame<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.buffer, value)?;
        let length = u32::try_from(self.buffer.len() - start - 4).ok().filter(|length| *length <= MAX_FRAME_BYTES);
        let length = length.ok_or_else(|| io::Error::other("frame too large"))?;
        self.buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        if self.buffer.len() >= FLUSH_THRESHOLD_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Sends all buffered frames.
    ///
    /// # Errors
    /// Fails if the connection breaks.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.buffer).await?;
        self.buffer.clear();
        self.sink.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(secret: &str) -> PeerHandshake {
        PeerHandshake { secret: secret.to_owned(), member: MemberId { name: "127.0.0.1:7070".into(), incarnation: 7 } }
    }

    #[tokio::test]
    async fn what_is_said_is_heard_in_order_to_the_end() {
        let (one, other) = tokio::io::duplex(64);
        let writer_task = tokio::spawn(async move {
            let mut writer = FrameWriter::new(one);
            for number in 0..100 {
                writer.write_frame(&handshake(&"s".repeat(number))).await.unwrap();
            }
            writer.flush().await.unwrap();
        });
        let mut reader = FrameReader::new(other);
        for number in 0..100 {
            let handshake: PeerHandshake = reader.read_frame().await.unwrap().unwrap();
            assert_eq!((handshake.secret.len(), handshake.member.incarnation), (number, 7));
        }
        writer_task.await.unwrap();
        assert!(reader.read_frame::<PeerHandshake>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_is_no_router_is_not_listened_to() {
        let read = async |bytes: &[u8]| {
            FrameReader::new(bytes).read_frame::<PeerHandshake>().await.map(|frame| frame.is_some())
        };
        assert!(read(b"GET / HTTP/1.1\r\n\r\n").await.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData));
        assert!(read(b"\0\0\0\x02{").await.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
        assert!(read(b"\0\0").await.is_err());
        assert!(read(b"\0\0\0\x02{}").await.is_err(), "no opening");
        assert!(!read(b"").await.unwrap());
    }

    #[tokio::test]
    async fn nothing_that_a_stranger_says_is_in_what_is_logged_of_it() {
        let frame = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        let error =
            async |bytes: &[u8]| FrameReader::new(bytes).read_frame::<PeerHandshake>().await.unwrap_err().to_string();
        for text in ["\"hunter2\"", "{\"hunter2\": 1}", "{\"secret\": {\"hunter2\": 1}}", "hunter2"] {
            assert_eq!(error(&frame(text)).await, "not a frame of a router");
        }
        assert_eq!(error(b"hunter2").await, "frame too large");
    }
}
