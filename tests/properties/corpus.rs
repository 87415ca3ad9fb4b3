//! The inputs that the fuzzer starts from, and those that once failed, pass on every toolchain.

use std::path::Path;

use crate::parsers;

/// Calls `property` with every file of the corpus of that name, and with pieces of each.
fn check_corpus(target: &str, property: fn(&[u8])) {
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
    check_corpus("paths", parsers::paths);
}

#[test]
fn heads() {
    check_corpus("heads", parsers::heads);
}

#[test]
fn settings() {
    check_corpus("settings", parsers::settings);
}

#[test]
fn endpoints() {
    check_corpus("endpoints", parsers::endpoints);
}

#[test]
fn responses() {
    check_corpus("responses", parsers::responses);
}
