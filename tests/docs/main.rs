//! The documentation: reference pages are what the code says, links lead somewhere, and commands are ones that exist.
//!
//! `UPDATE_FILES=1 cargo test --test docs` writes the generated pages.

#![allow(clippy::unwrap_used, reason = "a failure in a test should be seen at once")]

use std::path::{Path, PathBuf};

mod cli;
mod commands;
mod crd;
mod endpoint;
mod errors;
mod links;
mod metrics;
mod settings;

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a generated page with the file in `docs/reference/`, or writes the file when `UPDATE_FILES` is set.
#[track_caller]
fn assert_page(name: &str, text: &str) {
    let path = root().join("docs/reference").join(name);
    if std::env::var_os("UPDATE_FILES").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(file == text, "docs/reference/{name} is out of date; run UPDATE_FILES=1 cargo test --test docs");
}

/// The text of a table cell: one line, without characters that end the cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// README and every Markdown page of the repository that a reader may open, by path below the root.
fn pages() -> Vec<(PathBuf, String)> {
    let mut found: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benches/README.md"]
            .map(PathBuf::from)
            .into();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 30, "only {} pages found", found.len());
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    found.into_iter().map(read).collect()
}
