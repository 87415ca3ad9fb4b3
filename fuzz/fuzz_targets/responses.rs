//! Fuzzes what a replica answers; what must hold is in `tests/properties/parsers.rs`.
#![no_main]

#[allow(dead_code, unreachable_pub, reason = "each target uses its part")]
#[path = "../../tests/properties/parsers.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| parsers::responses(data));
