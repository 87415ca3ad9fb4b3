//! `limits`.

use std::ops::RangeInclusive;

use super::raw::RawLimits;
use super::{TIMEOUT, time};
use crate::model::check::Check;
use crate::model::limits::Limits;

const PAYLOAD_BYTES: RangeInclusive<i64> = 1..=1 << 50;
const HEADER_BYTES: RangeInclusive<i64> = 8_192..=1_048_576;
const HEADERS: RangeInclusive<i64> = 1..=10_000;
const CONNECTIONS: RangeInclusive<i64> = 1..=10_000_000;
const MIRROR_BUFFER_BYTES: RangeInclusive<i64> = 0..=1 << 40;

/// What protects the router from its clients.
pub(super) fn limits(check: &mut Check, raw: &RawLimits, default: &Limits) -> Limits {
    let header_bytes =
        size(check, "limits.maxHeaderBytes", raw.max_header_bytes, HEADER_BYTES, default.max_header_bytes);
    let payload = i64::try_from(default.max_payload_bytes).unwrap_or(i64::MAX);
    let payload = check.number("limits.maxPayloadBytes", raw.max_payload_bytes, PAYLOAD_BYTES, payload, " bytes");
    Limits {
        max_payload_bytes: payload.unsigned_abs(),
        max_header_bytes: header_bytes,
        max_headers: size(check, "limits.maxHeaders", raw.max_headers, HEADERS, default.max_headers),
        header_read_timeout: time(
            check,
            "limits.headerReadTimeout",
            raw.header_read_timeout,
            TIMEOUT,
            default.header_read_timeout,
        ),
        body_idle_timeout: time(
            check,
            "limits.bodyIdleTimeout",
            raw.body_idle_timeout,
            TIMEOUT,
            default.body_idle_timeout,
        ),
        max_connections: size(
            check,
            "limits.maxConnections",
            raw.max_connections,
            CONNECTIONS,
            default.max_connections,
        ),
        keep_alive_timeout: time(
            check,
            "limits.keepAliveTimeout",
            raw.keep_alive_timeout,
            TIMEOUT,
            default.keep_alive_timeout,
        ),
        mirror_buffer_bytes: size(
            check,
            "limits.mirrorBufferBytes",
            raw.mirror_buffer_bytes,
            MIRROR_BUFFER_BYTES,
            default.mirror_buffer_bytes,
        ),
    }
}

fn size(check: &mut Check, path: &str, given: Option<i64>, range: RangeInclusive<i64>, default: usize) -> usize {
    let number = check.number(path, given, range, i64::try_from(default).unwrap_or(i64::MAX), "");
    usize::try_from(number).unwrap_or(default)
}
