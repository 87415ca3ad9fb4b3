use super::super::resource::config_struct;
use super::*;
use serde_json::json;

config_struct! {
    struct OuterDocument {
        count: i64,
        share: f64,
        name: String,
        on: bool,
        words: Vec<Option<String>>,
        #[serde(deserialize_with = "mapping")]
        inner: InnerDocument,
        #[serde(deserialize_with = "mappings")]
        items: Vec<Option<InnerDocument>>,
        #[serde(deserialize_with = "mapping")]
        keys: InnerDocument,
        wait: super::super::duration::HumanDuration,
    }

    struct InnerDocument {
        max_length: i64,
        value: String,
    }
}

/// The decoded value and its problems as `path: what`.
fn decode_outer(value: Value) -> (OuterDocument, Vec<String>) {
    let (outer, problems) = decode::<OuterDocument>(value);
    (outer.unwrap_or_default(), problems.iter().map(ToString::to_string).collect())
}

fn only_problem(value: Value) -> String {
    let (_, problems) = decode_outer(value);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

#[test]
fn all_problems_are_found_at_once_and_the_rest_is_kept() {
    let (outer, problems) = decode_outer(json!({
        "count": "ten", "nmae": 1, "on": true, "words": ["a", 2, "b", false], "inner": {"max_length": 3},
        "items": [{"maxLength": 1}, {"maxLength": []}, [], {"value": "x"}],
    }));
    let paths: Vec<&str> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    let mut sorted = paths.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["count", "inner.max_length", "items[1].maxLength", "items[2]", "nmae", "words[1]", "words[3]"]);
    assert_eq!(outer.on, Some(true));
    assert_eq!(outer.words, Some(vec![Some("a".to_owned()), None, Some("b".to_owned()), None]));
    assert_eq!(outer.items.unwrap()[3].as_ref().unwrap().value.as_deref(), Some("x"));
}

#[test]
fn an_unknown_field_says_what_may_have_been_meant() {
    let text = only_problem(json!({"inner": {"max_length": 3}}));
    assert!(text.starts_with("inner.max_length: unknown field \"max_length\"; did you mean `maxLength`?"), "{text}");
    let text = only_problem(json!({"inner": {"zzzzzz": 3}}));
    assert!(text.ends_with("unknown field \"zzzzzz\"; known: `maxLength`, `value`"), "{text}");
    assert_eq!(only_problem(json!({"wrods`, \n": 1})).lines().count(), 1);
}

#[test]
fn a_wrong_type_says_what_is_there_and_what_should_be() {
    for (value, what) in [
        (json!({"count": "90"}), "count: is the text \"90\", but a whole number is expected; write 90 without quotes"),
        (json!({"count": "90%"}), "count: is the text \"90%\", but a whole number is expected"),
        (json!({"count": 1.5}), "count: is the number 1.5, but a whole number is expected"),
        (json!({"count": u64::MAX}), "count: is the number 18446744073709551615, but a whole number is expected"),
        (json!({"share": []}), "share: is a list, but a number is expected"),
        (json!({"name": 123}), "name: is the number 123, but text is expected; put it in quotes: \"123\""),
        (json!({"on": "yes"}), "on: is the text \"yes\", but `true` or `false` is expected"),
        (json!({"words": "one"}), "words: is the text \"one\", but a list is expected; write [\"one\"]"),
        (json!({"words": "a --b"}), "words: is the text \"a --b\", but a list is expected; write [\"a\", \"--b\"]"),
        (json!({"inner": [1, 2]}), "inner: is a list, but a mapping (lines of `key: value`) is expected"),
        (json!({"items": {"a": 1}}), "items: is a mapping, but a list is expected"),
        (json!(["count"]), "is a list, but a mapping (lines of `key: value`) is expected"),
        (json!({"wait": -1}), "wait: is the number -1, but a duration such as `10s` is expected"),
    ] {
        assert_eq!(only_problem(value), what);
    }
    assert!(only_problem(json!({"wait": 10})).contains("10 has no unit; write for example `10s`"));
}

#[test]
fn null_is_as_if_absent() {
    let (outer, problems) = decode_outer(json!({"count": null, "inner": null, "words": null, "items": [null]}));
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(outer, OuterDocument { items: Some(vec![None]), ..OuterDocument::default() });
}

#[test]
fn a_secret_is_never_repeated() {
    for value in [
        json!({"keys": "hunter2-hunter2-hunter2"}),
        json!({"keys": ["hunter2-hunter2-hunter2"]}),
        json!({"keys": {"value": ["hunter2"]}}),
        json!({"keys": {"value": 4_242_424_242_i64}}),
        json!({"keys": {"maxLength": "hunter2"}}),
    ] {
        let text = only_problem(value);
        assert!(!text.contains("hunter2") && !text.contains("4242"), "{text}");
    }
}

#[test]
fn a_hopeless_document_ends() {
    let many: serde_json::Map<String, Value> = (0..1_000).map(|n| (format!("unknown{n}"), Value::Null)).collect();
    let (outer, problems) = decode::<OuterDocument>(Value::Object(many));
    assert_eq!((outer, problems.len()), (None, MAX_PROBLEMS + 1));
    assert!(problems[MAX_PROBLEMS].message.contains("more problems"));
}
