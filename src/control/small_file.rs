//! Short files that settings and documents name, such as keys and certificates.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than any key or certificate chain needs.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a whole file. The call never waits, because the path may name a pipe by mistake, and never fills the memory,
/// because it may name a device.
///
/// # Errors
///
/// The error of the system, and an error for what is not a regular file or is too long.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}
