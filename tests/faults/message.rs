//! HTTP/1 messages read from a socket, by clients and by models: an end of the connection is a result, not a panic.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// A request or a response.
#[derive(Debug)]
pub struct Message {
    pub start: String,
    /// Names in small letters.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The connection ended, in order or by a reset, and there is no whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// Before its first byte.
    BeforeMessage,
    /// Within it.
    WithinMessage,
}

impl Message {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Of a response.
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// Of a request.
    pub fn path(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Reads a head and the body that goes with it.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<Self, ConnectionEnd> {
        let mut message = Self::read_head(stream).await?;
        if message.field("transfer-encoding").is_some() {
            while let Some(chunk) = chunk(stream).await? {
                message.body.extend(chunk);
            }
        } else {
            message.body = vec![0; message.length()];
            stream.read_exact(&mut message.body).await.map_err(|_| ConnectionEnd::WithinMessage)?;
        }
        Ok(message)
    }

    /// Reads a head only.
    pub async fn read_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<Self, ConnectionEnd> {
        let start = line(stream).await?;
        let mut fields = Vec::new();
        loop {
            let line = line(stream).await.map_err(|_| ConnectionEnd::WithinMessage)?;
            match line.split_once(':') {
                Some((name, value)) => fields.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Ok(Self { start, fields, body: Vec::new() }),
            }
        }
    }

    /// What `content-length` says.
    pub fn length(&self) -> usize {
        self.field("content-length").map_or(0, |length| length.parse().unwrap())
    }
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<String, ConnectionEnd> {
    let mut line = String::new();
    // A reset is an end like any other.
    let _ = stream.read_line(&mut line).await;
    match line.strip_suffix("\r\n") {
        Some(whole) => Ok(whole.to_owned()),
        None if line.is_empty() => Err(ConnectionEnd::BeforeMessage),
        None => Err(ConnectionEnd::WithinMessage),
    }
}

/// The next chunk of a chunked body; `None` after the last.
async fn chunk<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<Option<Vec<u8>>, ConnectionEnd> {
    let size = line(stream).await.map_err(|_| ConnectionEnd::WithinMessage)?;
    let size = usize::from_str_radix(&size, 16).map_err(|_| ConnectionEnd::WithinMessage)?;
    let mut bytes = vec![0; size + 2];
    stream.read_exact(&mut bytes).await.map_err(|_| ConnectionEnd::WithinMessage)?;
    bytes.truncate(size);
    Ok((size > 0).then_some(bytes))
}
