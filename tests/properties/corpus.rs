//! The inputs that the fuzzer starts from, and those that once broke something, hold on every toolchain.

use std::path::Path;

use crate::parsers;

/// Calls `property` with every file of the corpus of that name, and with pieces of each.
fn all(target: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        property(&data);
        for cut in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
            property(&data[..cut]);
            property(&data[cut..]);
        }
        count += 1;
    }
    assert!(count > 0, "nothing in {}", folder.display());
}

#[test]
fn paths() {
    all("paths", parsers::paths);
}

#[test]
fn heads() {
    all("heads", parsers::heads);
}

#[test]
fn settings() {
    all("settings", parsers::settings);
}

#[test]
fn endpoints() {
    all("endpoints", parsers::endpoints);
}

#[test]
fn responses() {
    all("responses", parsers::responses);
}
