//! What a replica prints, as lines of the router's log.

use std::borrow::Cow;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Bytes of a line that reach the log; the rest of the line is dropped, so that a replica which prints a picture
/// neither fills the log nor the memory.
const LONGEST: usize = 8 * 1024;

/// Logs every line of `source` until it ends. `stream` is `stdout` or `stderr`.
pub(super) async fn log(source: impl AsyncRead + Unpin, replica: String, stream: &'static str) {
    let mut reader = BufReader::new(source);
    let mut lines = Lines::default();
    let mut write = |line: &str| tracing::info!(target: "replica", replica, stream, "{line}");
    loop {
        let length = match reader.fill_buf().await {
            // A broken pipe is an end as good as any: how the process ended is seen elsewhere.
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                lines.push(bytes, &mut write);
                bytes.len()
            }
        };
        reader.consume(length);
    }
    lines.finish(&mut write);
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    cut: bool,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], write: &mut impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            self.finish(write);
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LONGEST - self.line.len();
        self.cut |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Empty lines say nothing in a log: they are left out.
    fn finish(&mut self, write: &mut impl FnMut(&str)) {
        let mut text = String::from_utf8_lossy(self.line.trim_ascii_end());
        if self.cut {
            text = Cow::Owned(format!("{text}…"));
        }
        if !text.is_empty() {
            write(&text);
        }
        self.line.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut write = |line: &str| seen.push(line.to_owned());
        for chunk in chunks {
            lines.push(chunk, &mut write);
        }
        lines.finish(&mut write);
        seen
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(lines_of(&[b"one\ntw", b"o\r\n", b"\n", b"three"]), ["one", "two", "three"]);
    }

    #[test]
    fn what_is_not_text_is_replaced() {
        assert_eq!(lines_of(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_not() {
        let long = vec![b'x'; LONGEST];
        let whole = String::from_utf8(long.clone()).unwrap();
        assert_eq!(lines_of(&[&long, b"\nshort\n"]), [whole.as_str(), "short"]);
        assert_eq!(lines_of(&[&long, &long, b"y\nshort\n"]), [format!("{whole}…").as_str(), "short"]);
    }
}
