//! Writes the output of replicas to the router's log.

use std::borrow::Cow;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The number of bytes of a line that reach the log. The rest of the line is dropped, so that a replica which prints
/// binary data fills neither the log nor the memory.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// Logs every line of `source` until it ends. `stream` is `stdout` or `stderr`.
pub(super) async fn log_lines(source: impl AsyncRead + Unpin, replica: String, stream: &'static str) {
    let mut reader = BufReader::new(source);
    let mut lines = LineSplitter::default();
    let mut write = |line: &str| tracing::info!(target: "replica", replica, stream, "{line}");
    loop {
        let length = match reader.fill_buf().await {
            // A broken pipe counts as the end. How the process ended is reported elsewhere.
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                lines.push(bytes, &mut write);
                bytes.len()
            }
        };
        reader.consume(length);
    }
    lines.flush_line(&mut write);
}

/// Splits a stream of bytes into lines.
#[derive(Default)]
struct LineSplitter {
    line: Vec<u8>,
    is_truncated: bool,
}

impl LineSplitter {
    fn push(&mut self, mut bytes: &[u8], write: &mut impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.append_truncated(&bytes[..end]);
            self.flush_line(write);
            bytes = &bytes[end + 1..];
        }
        self.append_truncated(bytes);
    }

    fn append_truncated(&mut self, bytes: &[u8]) {
        let room = MAX_LINE_BYTES - self.line.len();
        self.is_truncated |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Empty lines carry no information and are left out.
    fn flush_line(&mut self, write: &mut impl FnMut(&str)) {
        let mut text = String::from_utf8_lossy(self.line.trim_ascii_end());
        if self.is_truncated {
            text = Cow::Owned(format!("{text}…"));
        }
        if !text.is_empty() {
            write(&text);
        }
        self.line.clear();
        self.is_truncated = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (LineSplitter::default(), Vec::new());
        let mut write = |line: &str| seen.push(line.to_owned());
        for chunk in chunks {
            lines.push(chunk, &mut write);
        }
        lines.flush_line(&mut write);
        seen
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(split_lines(&[b"one\ntw", b"o\r\n", b"\n", b"three"]), ["one", "two", "three"]);
    }

    #[test]
    fn what_is_not_text_is_replaced() {
        assert_eq!(split_lines(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_not() {
        let long = vec![b'x'; MAX_LINE_BYTES];
        let whole = String::from_utf8(long.clone()).unwrap();
        assert_eq!(split_lines(&[&long, b"\nshort\n"]), [whole.as_str(), "short"]);
        assert_eq!(split_lines(&[&long, &long, b"y\nshort\n"]), [format!("{whole}…").as_str(), "short"]);
    }
}
