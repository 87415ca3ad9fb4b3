//! Short files that settings and documents name: keys, certificates.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Far more than any key or chain of certificates needs.
const LONGEST: u64 = 1 << 20;

/// The whole file. Never waits: what is named by mistake may be a pipe, and never fills the memory: it may be a device.
///
/// # Errors
/// As in the system, and for what is no file, or too long.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("it has more than {LONGEST} bytes")));
    }
    Ok(bytes)
}
