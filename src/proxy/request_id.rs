//! Generation of request ids.

use http::HeaderValue;
use rand::{Rng, RngExt};

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";
/// The positions of the digits of each byte: 8-4-4-4-12.
const DIGIT_POSITIONS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];

/// Returns a fresh UUID of version 4 (RFC 9562).
pub(super) fn generate(rng: &mut impl Rng) -> HeaderValue {
    let mut bytes: [u8; 16] = rng.random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    for (byte, at) in bytes.into_iter().zip(DIGIT_POSITIONS) {
        text[at] = HEX_DIGITS[usize::from(byte >> 4)];
        text[at + 1] = HEX_DIGITS[usize::from(byte & 0xf)];
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
        let (id, other) = (generate(&mut rng), generate(&mut rng));
        let text = id.to_str().unwrap();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(id, other);
    }
}
