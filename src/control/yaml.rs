//! Parses YAML text into plain values, with limits against hostile or broken files.

use serde_json::Value;
use serde_saphyr::{Budget, DuplicateKeyPolicy, Error, NonFiniteFloatPolicy, Options};

use crate::model::problem::{Problem, quoted};

/// The largest accepted text, in bytes. 10,000 endpoints need about a tenth of it.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The deepest nesting. An endpoint needs 8 levels.
const MAX_DEPTH: usize = 32;
/// The largest number of nodes that aliases of a document repeat. Twenty deployments that share everything need about a
/// thousand.
const MAX_ALIAS_EVENTS: usize = 10_000;

/// Returns the documents of `text` that are not empty, each as its value or its syntax error.
///
/// Nothing is read after a syntax error, because the beginning of the next document is unknown.
pub fn parse_documents(text: &str) -> Vec<Result<Value, Problem>> {
    if text.len() > MAX_BYTES {
        let what = format!("has {} bytes, but {MAX_BYTES} is the most; split it into several files", text.len());
        return vec![Err(Problem::new("", what))];
    }
    let mut bytes = text.as_bytes();
    serde_saphyr::read_with_options::<_, Value>(&mut bytes, parser_options())
        .map(|document| document.map_err(|error| syntax_problem(&error)))
        .collect()
}

fn parser_options() -> Options {
    // Both structs are non-exhaustive, so they cannot be written as literals. The budget applies to each document.
    let mut budget = Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.max_reader_input_bytes = Some(MAX_BYTES);
    let mut options = Options::default();
    options.budget = Some(budget);
    // The default is a hundred times as high and allows seconds of work for a text of a few lines.
    options.alias_limits.max_total_replayed_events = MAX_ALIAS_EVENTS;
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    // `no`, `on` and the like stay text, so that they can be names of deployments.
    options.strict_booleans = true;
    // As text, `.nan` gets the message "a number is expected"; as a number it would silently become null.
    options.non_finite_float_policy = NonFiniteFloatPolicy::AsString;
    // A snippet of the text could show a key in a log.
    options.with_snippet = false;
    options
}

fn syntax_problem(error: &serde_saphyr::Error) -> Problem {
    let error = error.without_snippet();
    let place = match error.location() {
        Some(at) if at.line() > 0 => format!("line {}, column {}: ", at.line(), at.column()),
        _ => String::new(),
    };
    let what = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {} is written a second time here; keep one of the two", quoted(key))
        }
        Error::DuplicateMappingKey { .. } => "a key is written a second time here; keep one of the two".to_owned(),
        other => {
            // The message ends with the location, which is reported separately.
            let message = other.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            explain_syntax_error(message)
        }
    };
    Problem::new("", format!("{place}{what}"))
}

/// Returns the parser's message, with an explanation of those that say least.
fn explain_syntax_error(message: &str) -> String {
    // Limits that are exceeded inside an alias are reported as text only.
    if message.contains("budget breached") || message.contains("limit exceeded") {
        return "the document is too large or nested too deeply to be one of the router's".to_owned();
    }
    let hint = if message.contains("mapping values are not allowed") {
        "; check the indentation of this line, and put a text that has `: ` in it into quotes"
    } else if message.contains("unexpected character") {
        "; put the value into quotes"
    } else if message.contains("illegal placement of ':'") || message.contains("misplaced bracket") {
        "; check that every `[` and `{` before it is closed"
    } else if message.contains("string scalar") || message.contains("null into string") {
        "; a key must be text"
    } else {
        ""
    };
    format!("this is not YAML: {message}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem_message(text: &str) -> String {
        let mut documents = parse_documents(text);
        assert_eq!(documents.len(), 1, "{documents:?}");
        documents.remove(0).unwrap_err().message
    }

    #[test]
    fn values_mean_what_they_look_like() {
        let text = "a: yes\nb: on\nc: true\nd: 0x10\ne: '1'\nf: .nan\ng: ~\nh: 10s\n? i\n: 1.5\n1: 2";
        let value = json!({"a": "yes", "b": "on", "c": true, "d": 16, "e": "1", "f": ".nan", "g": null, "h": "10s",
            "i": 1.5, "1": 2});
        assert_eq!(parse_documents(text), [Ok(value)]);
    }

    #[test]
    fn anchors_and_merge_keys_work_within_a_document() {
        let text = "base: &base {a: 1}\nmore:\n  <<: *base\n  b: 2";
        assert_eq!(parse_documents(text), [Ok(json!({"base": {"a": 1}, "more": {"a": 1, "b": 2}}))]);
    }

    #[test]
    fn empty_documents_do_not_count() {
        for text in ["", "# nothing\n", "---\n", "---\n---\n# nothing\n...\n", "~"] {
            assert_eq!(parse_documents(text), [], "{text:?}");
        }
        assert_eq!(parse_documents("\u{feff}---\r\n---\r\na: 1\r\n"), [Ok(json!({"a": 1}))]);
    }

    #[test]
    fn a_syntax_error_names_its_place_and_a_way_out() {
        for (text, place, gist) in [
            ("a: 1\nb: x: y", "line 2, column 5: ", "indentation"),
            ("a: [1, 2\nb: 3", "line 2, ", "is closed"),
            ("a: @x", "line 1, column 4: ", "quotes"),
            ("a: 'x", "line 1, ", "unclosed quote"),
            ("a: *nope", "line 1, ", "anchor"),
            ("? [a]\n: b", "line 1, ", "a key must be text"),
        ] {
            let what = problem_message(text);
            assert!(what.starts_with(place) && what.contains(gist), "{what}");
        }
    }

    #[test]
    fn a_key_written_twice_is_an_error_and_the_next_document_is_read() {
        let both = parse_documents("a: 1\na: 2\n---\nb: 1");
        let what = &both[0].as_ref().unwrap_err().message;
        assert_eq!(what, "line 2, column 1: the key \"a\" is written a second time here; keep one of the two");
        assert_eq!(both[1], Ok(json!({"b": 1})));
    }

    #[test]
    fn a_text_made_to_exhaust_the_router_does_not() {
        assert!(problem_message(&format!("{}{}", "[".repeat(100), "]".repeat(100))).contains("nested too deeply"));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
        }
        let since = std::time::Instant::now();
        let what = problem_message(&bomb);
        assert!(what.contains("too large"), "{what}");
        assert!(since.elapsed().as_secs() < 2, "{:?}", since.elapsed());
        assert!(problem_message(&" ".repeat(MAX_BYTES + 1)).contains("split it"));
    }
}
