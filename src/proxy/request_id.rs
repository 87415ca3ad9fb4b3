//! Ids of requests.

use http::HeaderValue;
use rand::{Rng, RngExt};

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Where the digits of each byte are written: 8-4-4-4-12.
const DIGITS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

/// A fresh UUID, version 4 (RFC 9562).
pub(super) fn fresh(rng: &mut impl Rng) -> HeaderValue {
    let mut bytes: [u8; 16] = rng.random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    for (byte, at) in bytes.into_iter().zip(DIGITS) {
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 0xf)];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let mut rng = SmallRng::seed_from_u64(7);
        let (id, other) = (fresh(&mut rng), fresh(&mut rng));
        let text = id.to_str().unwrap();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(id, other);
    }
}
