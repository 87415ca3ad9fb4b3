//! Problems of documents, worded so that the author can fix them.

use std::fmt;

/// One problem of a settings file or an endpoint document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The source of the document: the path of a file, `environment`, or empty.
    pub source: String,
    /// The field, such as `spec.deployments[0].port`; empty for the whole document.
    pub path: String,
    /// What is wrong with the field, and what would be right.
    pub message: String,
}

impl Problem {
    /// Creates a problem of the field at `path`. The caller that knows the source adds it with
    /// [`Problem::from_source`].
    pub fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { source: String::new(), path: path.into(), message: what.into() }
    }

    /// Returns the problem with its source set.
    #[must_use]
    pub fn from_source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// Merges the problems of a document: all of its form, and those of the rules that do not merely follow from them. (A
/// field that was left out for its form is not reported as missing too.)
pub fn merge_problems(form: Vec<Problem>, rules: Vec<Problem>) -> Vec<Problem> {
    let is_echo = |problem: &Problem| {
        form.iter().any(|known| is_within(&known.path, &problem.path) || is_within(&problem.path, &known.path))
    };
    let news: Vec<Problem> = rules.into_iter().filter(|problem| !is_echo(problem)).collect();
    form.into_iter().chain(news).collect()
}

/// Returns the path of the field `name` of the mapping at `parent`. A name that could be misread is quoted.
pub fn field_path(parent: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, parent.is_empty()) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{parent}.{name}"),
        (false, _) => format!("{parent}[{}]", quoted(name)),
    }
}

/// Returns the path of one item of the list at `parent`, counted from 0.
pub fn item_path(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Returns whether `path` is `ancestor` or a field below it.
pub fn is_within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| ancestor.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Returns `text` as messages show it: in quotes, with control characters escaped, and cut when it is long.
pub fn quoted(text: &str) -> String {
    const MAX_SHOWN_CHARS: usize = 60;
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_document() {
        assert_eq!(field_path(&item_path(&field_path("spec", "deployments"), 1), "port"), "spec.deployments[1].port");
        assert_eq!(field_path("", "spec"), "spec");
        assert_eq!(field_path("metadata.labels", "a.b/c"), "metadata.labels[\"a.b/c\"]");
    }

    #[test]
    fn within_is_by_whole_steps() {
        assert!(is_within("spec.port", "spec"));
        assert!(is_within("spec[0]", "spec"));
        assert!(is_within("spec", "spec"));
        assert!(is_within("spec", ""));
        assert!(!is_within("spectrum", "spec"));
    }

    #[test]
    fn quoted_text_cannot_break_a_log_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"x".repeat(61)), format!("\"{}\"…", "x".repeat(60)));
    }
}
