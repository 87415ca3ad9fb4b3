//! Every link, anchor and file name in README and docs leads somewhere.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use crate::{pages, root};

#[test]
fn every_link_leads_to_a_file_and_an_anchor() {
    let pages: HashMap<PathBuf, String> = pages().into_iter().collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in &pages {
        for link in links(text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { normal(&path.parent().unwrap().join(file)) };
            let say = |what: &str| format!("{}: {link} {what}", path.display());
            if !root().join(&target).exists() {
                wrong.push(say("leads to no file"));
            } else if let Some(anchor) = anchor {
                let known = pages.get(&target).map(|text| anchors(text)).unwrap_or_default();
                if !known.contains(anchor) {
                    wrong.push(say("leads to no heading"));
                }
            }
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "only {seen} links found");
}

#[test]
fn every_page_of_docs_is_in_the_book() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&summary).into_iter().map(|link| Path::new("docs").join(link)).collect();
    let there: BTreeSet<PathBuf> =
        pages().into_iter().map(|(path, _)| path).filter(|path| path.starts_with("docs")).collect();
    let missing: Vec<_> = there.difference(&listed).filter(|path| !path.ends_with("SUMMARY.md")).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

/// A file or folder of the repository that a page names in code, such as `src/proxy/listen.rs`, is there.
#[test]
fn every_file_named_is_there() {
    const TOP: [&str; 9] = ["src/", "tests/", "benches/", "config/", "deploy/", "docs/", "fuzz/", ".ci/", "Dockerfile"];
    let mut wrong = Vec::new();
    // The history may name what is gone.
    for (path, text) in pages().into_iter().filter(|(path, _)| path != Path::new("CHANGELOG.md")) {
        for code in text.split('`').skip(1).step_by(2).filter(|code| !code.contains(char::is_whitespace)) {
            let name = code.split(['{', '*', ':']).next().unwrap_or_default();
            let is_file = TOP.iter().any(|top| name.starts_with(top)) && !name.contains("fuzz/artifacts");
            if is_file && !root().join(name).exists() {
                wrong.push(format!("{}: {code} is not there", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let length = std::fs::metadata(root().join("README.md")).unwrap().len();
    assert!(length <= 10 * 1024, "README.md has {length} bytes; what is beyond 10 KB belongs in docs/");
}

/// Targets of inline links and images, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let mut rest = line.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let end = rest.find(')').unwrap_or(rest.len());
            found.push(rest[..end].split(' ').next().unwrap_or_default().to_owned());
            rest = &rest[end..];
        }
        for attribute in ["src=\"", "srcset=\"", "href=\""] {
            found.extend(
                line.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap_or_default().to_owned()),
            );
        }
    }
    found
}

/// Lines outside of code blocks, without inline code.
fn prose(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            // A link's text may be code; its target is not.
            lines.push(line.split('`').step_by(2).collect());
        }
    }
    lines
}

/// Anchors that GitHub makes of the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut found, mut is_code) = (BTreeSet::new(), false);
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code || !line.starts_with('#') {
            continue;
        }
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let mut unique = anchor.clone();
        for number in 1.. {
            if found.insert(unique.clone()) {
                break;
            }
            unique = format!("{anchor}-{number}");
        }
    }
    found
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut steps = PathBuf::new();
    for step in path.components() {
        match step {
            Component::ParentDir => drop(steps.pop()),
            Component::CurDir => {}
            other => steps.push(other),
        }
    }
    steps
}

#[test]
fn links_and_anchors_are_read_as_github_reads_them() {
    let text =
        "# A `b_c`: d\n[x](y.md#z \"title\") ![i](p.svg) `[no](link)`\n```\n[no](link)\n# No\n```\n## A `b_c`: d\n";
    assert_eq!(links(text), ["y.md#z", "p.svg"]);
    assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), ["a-b_c-d", "a-b_c-d-1"]);
}
