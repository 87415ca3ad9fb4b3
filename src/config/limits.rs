//! Validation of `limits`.

use std::ops::RangeInclusive;

use super::raw::RawLimits;
use super::{TIMEOUT_RANGE, duration_in_range};
use crate::model::problem_collector::ProblemCollector;
use crate::model::router_settings::Limits;

const PAYLOAD_BYTES_RANGE: RangeInclusive<i64> = 1..=1 << 50;
const HEADER_BYTES_RANGE: RangeInclusive<i64> = 8_192..=1_048_576;
const HEADERS_RANGE: RangeInclusive<i64> = 1..=10_000;
const CONNECTIONS_RANGE: RangeInclusive<i64> = 1..=10_000_000;
const MIRROR_BUFFER_BYTES_RANGE: RangeInclusive<i64> = 0..=1 << 40;

/// Returns the limits that protect the router from its clients.
pub(super) fn check_limits(check: &mut ProblemCollector, raw: &RawLimits, default: &Limits) -> Limits {
    let header_bytes = size_in_range(
        check,
        "limits.maxHeaderBytes",
        raw.max_header_bytes,
        HEADER_BYTES_RANGE,
        default.max_header_bytes,
    );
    let payload = i64::try_from(default.max_payload_bytes).unwrap_or(i64::MAX);
    let payload =
        check.number_in_range("limits.maxPayloadBytes", raw.max_payload_bytes, PAYLOAD_BYTES_RANGE, payload, " bytes");
    Limits {
        max_payload_bytes: payload.unsigned_abs(),
        max_header_bytes: header_bytes,
        max_headers: size_in_range(check, "limits.maxHeaders", raw.max_headers, HEADERS_RANGE, default.max_headers),
        header_read_timeout: duration_in_range(
            check,
            "limits.headerReadTimeout",
            raw.header_read_timeout,
            TIMEOUT_RANGE,
            default.header_read_timeout,
        ),
        body_idle_timeout: duration_in_range(
            check,
            "limits.bodyIdleTimeout",
            raw.body_idle_timeout,
            TIMEOUT_RANGE,
            default.body_idle_timeout,
        ),
        max_connections: size_in_range(
            check,
            "limits.maxConnections",
            raw.max_connections,
            CONNECTIONS_RANGE,
            default.max_connections,
        ),
        keep_alive_timeout: duration_in_range(
            check,
            "limits.keepAliveTimeout",
            raw.keep_alive_timeout,
            TIMEOUT_RANGE,
            default.keep_alive_timeout,
        ),
        mirror_buffer_bytes: size_in_range(
            check,
            "limits.mirrorBufferBytes",
            raw.mirror_buffer_bytes,
            MIRROR_BUFFER_BYTES_RANGE,
            default.mirror_buffer_bytes,
        ),
    }
}

fn size_in_range(
    check: &mut ProblemCollector,
    path: &str,
    given: Option<i64>,
    range: RangeInclusive<i64>,
    default: usize,
) -> usize {
    let number = check.number_in_range(path, given, range, i64::try_from(default).unwrap_or(i64::MAX), "");
    usize::try_from(number).unwrap_or(default)
}
