//! What an HTTP/2 client says, frame by frame: enough to tell a client that only talks.
//!
//! The library bounds what heads and bodies cost, and resets of streams that wait to be looked at. Pings, settings,
//! priorities and window updates it answers, or takes note of, as fast as they come and for as long, and a client that
//! resets a little more slowly has every request begun and cancelled: those are bounded here.

/// Frames that ask for nothing which a connection may have at any time.
const FREE: u64 = 1_000;
/// Besides, so many for each frame of a head or a body.
const PER_FRAME: u64 = 8;
/// And one for so many bytes of an answer: windows are updated as they are taken.
const BYTES_EACH: u64 = 128;

/// Requests that a client may cancel, besides half of them.
const CANCELLED: u64 = 500;

/// Length of a frame's own head.
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// What was said so far.
pub(super) struct Talk {
    /// The head of the frame that begins, as far as it is there.
    head: [u8; FRAME_HEAD],
    known: usize,
    /// Bytes that belong to the frame before.
    rest: usize,
    /// Frames that ask for nothing.
    idle: u64,
    /// Frames of heads and bodies.
    useful: u64,
    /// Of these, those that begin a head.
    heads: u64,
    resets: u64,
}

impl Default for Talk {
    fn default() -> Self {
        let preface = super::connection::HTTP2_PREFACE.len();
        Self { head: [0; FRAME_HEAD], known: 0, rest: preface, idle: 0, useful: 0, heads: 0, resets: 0 }
    }
}

impl Talk {
    /// Takes note of what was received.
    pub(super) fn hear(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, more)) = bytes.split_first() else { return };
            (self.head[self.known], bytes) = (*first, more);
            self.known += 1;
            if self.known == FRAME_HEAD {
                self.known = 0;
                self.frame();
            }
        }
    }

    /// Whether the client has said too much that asks for nothing, for so many bytes of answers, or has taken too much
    /// of what it asked for back.
    pub(super) fn is_idle(&self, answered: u64) -> bool {
        let talks = self.idle > FREE + PER_FRAME * self.useful + answered / BYTES_EACH;
        talks || self.resets > CANCELLED + self.heads / 2
    }

    fn frame(&mut self) {
        let [high, middle, low, kind, ..] = self.head;
        self.rest = u32::from_be_bytes([0, high, middle, low]) as usize;
        match kind {
            HEADERS => (self.heads, self.useful) = (self.heads + 1, self.useful + 1),
            DATA | CONTINUATION => self.useful += 1,
            RST_STREAM => self.resets += 1,
            _ => self.idle += 1,
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
        let said = [preface, frame(4, 6), frame(HEADERS, 40), frame(6, 8), frame(DATA, 0), frame(0xbb, 255)].concat();
        for piece in [1, 2, 7, 9, 10, 64, said.len()] {
            let mut talk = Talk::default();
            said.chunks(piece).for_each(|bytes| talk.hear(bytes));
            assert_eq!((talk.idle, talk.useful, talk.rest, talk.known), (3, 2, 0, 0), "in pieces of {piece}");
        }
    }

    #[test]
    fn who_asks_for_something_may_talk_more() {
        let mut talk = Talk { idle: FREE, ..Talk::default() };
        assert!(!talk.is_idle(0));
        talk.idle += 1;
        assert!(talk.is_idle(0) && !talk.is_idle(BYTES_EACH));
        talk.useful += 1;
        assert!(!talk.is_idle(0));
    }

    #[test]
    fn who_takes_more_than_half_back_is_cut_off_in_the_end() {
        let cancelled = |heads, resets| Talk { heads, resets, ..Talk::default() }.is_idle(0);
        assert!(!cancelled(500, 500) && !cancelled(1_000, 1_000) && !cancelled(1_000_000, 500_000));
        assert!(cancelled(1_002, 1_002));
    }
}
