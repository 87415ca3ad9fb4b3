//! Counts the frames of an HTTP/2 client, to detect one that floods the connection with control frames.
//!
//! The library limits the cost of heads, bodies, and resets of streams that are not processed yet. It answers or
//! records pings, settings, priorities and window updates as fast as they arrive, without a limit, and a client that
//! resets a little more slowly has every request started and canceled. Both are limited here.

/// The number of idle frames, which ask for nothing, that every connection may have.
const IDLE_FRAMES_ALLOWED: u64 = 1_000;
/// The number of additional idle frames for each frame of a head or a body.
const IDLE_FRAMES_PER_USEFUL_FRAME: u64 = 8;
/// The number of response bytes that allow one additional idle frame, because windows are updated as data is received.
const RESPONSE_BYTES_PER_IDLE_FRAME: u64 = 128;

/// The number of requests that a client may cancel, in addition to half of its requests.
const RESETS_ALLOWED: u64 = 500;

/// The length of a frame header, in bytes.
const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// The counts of the frames that a client has sent so far.
pub(super) struct FrameBudget {
    /// The header of the current frame, as far as it has been received.
    frame_header: [u8; FRAME_HEADER_BYTES],
    header_bytes_read: usize,
    /// The number of bytes before the next frame header: the rest of a payload or, at first, of the preface.
    payload_bytes_left: usize,
    /// The number of frames that ask for nothing.
    idle_frames: u64,
    /// The number of frames of heads and bodies.
    useful_frames: u64,
    /// The number of useful frames that begin a head.
    header_frames: u64,
    resets: u64,
}

impl Default for FrameBudget {
    fn default() -> Self {
        let preface = super::connection::HTTP2_PREFACE.len();
        Self {
            frame_header: [0; FRAME_HEADER_BYTES],
            header_bytes_read: 0,
            payload_bytes_left: preface,
            idle_frames: 0,
            useful_frames: 0,
            header_frames: 0,
            resets: 0,
        }
    }
}

impl FrameBudget {
    /// Counts the frames in the received bytes.
    pub(super) fn observe(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.payload_bytes_left.min(bytes.len());
            self.payload_bytes_left -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, more)) = bytes.split_first() else { return };
            (self.frame_header[self.header_bytes_read], bytes) = (*first, more);
            self.header_bytes_read += 1;
            if self.header_bytes_read == FRAME_HEADER_BYTES {
                self.header_bytes_read = 0;
                self.count_frame();
            }
        }
    }

    /// Returns whether the client has sent too many idle frames for this many bytes of responses, or has canceled too
    /// many of its requests.
    pub(super) fn is_exceeded(&self, response_bytes: u64) -> bool {
        let has_too_many_idle_frames = self.idle_frames
            > IDLE_FRAMES_ALLOWED
                + IDLE_FRAMES_PER_USEFUL_FRAME * self.useful_frames
                + response_bytes / RESPONSE_BYTES_PER_IDLE_FRAME;
        has_too_many_idle_frames || self.resets > RESETS_ALLOWED + self.header_frames / 2
    }

    fn count_frame(&mut self) {
        let [high, middle, low, kind, ..] = self.frame_header;
        self.payload_bytes_left = u32::from_be_bytes([0, high, middle, low]) as usize;
        match kind {
            HEADERS => (self.header_frames, self.useful_frames) = (self.header_frames + 1, self.useful_frames + 1),
            DATA | CONTINUATION => self.useful_frames += 1,
            RST_STREAM => self.resets += 1,
            _ => self.idle_frames += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [vec![0, 0, length, kind, 0, 0, 0, 0, 1], vec![0xff; length.into()]].concat()
    }

    #[test]
    fn frames_are_told_apart_however_they_arrive() {
        let preface = super::super::connection::HTTP2_PREFACE.to_vec();
        let sent = [preface, frame(4, 6), frame(HEADERS, 40), frame(6, 8), frame(DATA, 0), frame(0xbb, 255)].concat();
        for piece in [1, 2, 7, 9, 10, 64, sent.len()] {
            let mut budget = FrameBudget::default();
            sent.chunks(piece).for_each(|bytes| budget.observe(bytes));
            assert_eq!(
                (budget.idle_frames, budget.useful_frames, budget.payload_bytes_left, budget.header_bytes_read),
                (3, 2, 0, 0),
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn who_asks_for_something_may_talk_more() {
        let mut budget = FrameBudget { idle_frames: IDLE_FRAMES_ALLOWED, ..FrameBudget::default() };
        assert!(!budget.is_exceeded(0));
        budget.idle_frames += 1;
        assert!(budget.is_exceeded(0) && !budget.is_exceeded(RESPONSE_BYTES_PER_IDLE_FRAME));
        budget.useful_frames += 1;
        assert!(!budget.is_exceeded(0));
    }

    #[test]
    fn who_takes_more_than_half_back_is_cut_off_in_the_end() {
        let is_exceeded =
            |heads, resets| FrameBudget { header_frames: heads, resets, ..FrameBudget::default() }.is_exceeded(0);
        assert!(!is_exceeded(500, 500) && !is_exceeded(1_000, 1_000) && !is_exceeded(1_000_000, 500_000));
        assert!(is_exceeded(1_002, 1_002));
    }
}
