//! Ids of requests.

use http::HeaderValue;
use rand::{Rng, RngExt};

/// A fresh UUID, version 4 (RFC 9562).
pub(super) fn fresh(rng: &mut impl Rng) -> HeaderValue {
    let random: u128 = rng.random();
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut digit = 0;
    for (at, place) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at) {
            *place = b"0123456789abcdef"[(bits >> (124 - 4 * digit)) as usize & 0xf];
            digit += 1;
        }
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
