use super::*;
use crate::model::json_path::{JsonPath, JsonPathError};
use serde_json::json;

fn rules(tolerance: f64, ignore: &[&str], unordered: &[&str]) -> Rules {
    let places = |all: &[&str]| all.iter().map(|text| JsonPath::parse(text).unwrap()).collect();
    Rules {
        compare_bodies: true,
        max_body_bytes: 1024,
        numeric_tolerance: tolerance,
        ignored_paths: places(ignore),
        unordered_paths: places(unordered),
    }
}

/// A verdict that has these places only.
fn different(places: &[&str]) -> Verdict {
    let difference = |place: &&str| Difference { place: (*place).to_owned(), what: String::new() };
    Verdict::Different(places.iter().map(difference).collect())
}

fn without_words(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Different(places) => {
            let silent = |difference| Difference { what: String::new(), ..difference };
            Verdict::Different(places.into_iter().map(silent).collect())
        }
        other => other,
    }
}

fn compare(live: &[u8], shadow: &[u8], rules: &Rules) -> Verdict {
    without_words(super::compare(live, shadow, rules))
}

fn compare_json(live: &Value, shadow: &Value, rules: &Rules) -> Verdict {
    without_words(super::compare_json(live, shadow, rules))
}

#[test]
fn numbers_may_differ_by_the_tolerance_or_by_that_part_of_them() {
    let of = |live: Value, shadow: Value| compare_json(&live, &shadow, &rules(1e-6, &[], &[]));
    assert_eq!(of(json!([1, 2.5]), json!([1.0, 2.5])), Verdict::Equal);
    assert_eq!(of(json!(1e9), json!(1e9 + 100.0)), Verdict::WithinTolerance);
    assert_eq!(of(json!(1e9), json!(1e9 + 10_000.0)), different(&["$"]));
    assert_eq!(of(json!(0.0), json!(1e-7)), Verdict::WithinTolerance);
    assert_eq!(of(json!(0.0), json!(1e-5)), different(&["$"]));
    assert_eq!(of(json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64)), Verdict::WithinTolerance);
    let exact = |live: Value, shadow: Value| compare_json(&live, &shadow, &rules(0.0, &[], &[]));
    assert_eq!(exact(json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64)), different(&["$"]));
    assert_eq!(exact(json!(0.1), json!(0.1 + 1e-12)), different(&["$"]));
}

#[test]
fn what_differs_is_told_by_its_place_without_positions() {
    let live =
        json!({"predictions": [{"score": 1, "label": "a"}, {"score": 2, "label": "b"}], "odd name": 1, "gone": 1});
    let shadow =
        json!({"predictions": [{"score": 1, "label": "x"}, {"score": 9, "label": "y"}], "odd name": 2, "new": 1});
    let expected =
        different(&["$.gone", "$[\"odd name\"]", "$.predictions[*].label", "$.predictions[*].score", "$.new"]);
    assert_eq!(compare_json(&live, &shadow, &rules(0.0, &[], &[])), expected);
    assert_eq!(compare_json(&json!([1, 2]), &json!([1]), &rules(0.0, &[], &[])), different(&["$"]));
    assert_eq!(compare_json(&json!(null), &json!(false), &rules(0.0, &[], &[])), different(&["$"]));
}

#[test]
fn what_is_ignored_may_differ_or_be_missing() {
    let live = json!({"timestamp": 1, "items": [{"id": 1, "value": 5}], "model": {"version": "1"}});
    let shadow = json!({"items": [{"id": 2, "value": 5}], "model": {"version": "2", "extra": true}});
    let ignoring = rules(0.0, &["$.timestamp", "$.items[*].id", "$.model.*"], &[]);
    assert_eq!(compare_json(&live, &shadow, &ignoring), Verdict::Equal);
    let all_but_one = rules(0.0, &["$.timestamp", "$.items[1].id", "$.model"], &[]);
    assert_eq!(compare_json(&live, &shadow, &all_but_one), different(&["$.items[*].id"]));
}

#[test]
fn lists_without_an_order_agree_item_by_item() {
    let unordered = rules(1e-3, &[], &["$.tags", "$.boxes"]);
    let of = |live: Value, shadow: Value| compare_json(&live, &shadow, &unordered);
    assert_eq!(of(json!({"tags": ["a", "b", "b"]}), json!({"tags": ["b", "a", "b"]})), Verdict::Equal);
    assert_eq!(of(json!({"tags": ["a", "b", "b"]}), json!({"tags": ["b", "a", "a"]})), different(&["$.tags[*]"]));
    let live = json!({"boxes": [{"x": 1.0}, {"x": 2.0}]});
    assert_eq!(of(live.clone(), json!({"boxes": [{"x": 2.0001}, {"x": 1.0}]})), Verdict::WithinTolerance);
    assert_eq!(of(live.clone(), json!({"boxes": [{"x": 2.0}]})), different(&["$.boxes"]));
    assert_eq!(of(json!([1, 2]), json!([2, 1])), different(&["$[*]"]), "others keep their order");
    let many = |reverse: bool| {
        let mut all: Vec<u32> = (0..1_000).collect();
        if reverse {
            all.reverse();
        }
        json!({"tags": all})
    };
    assert_eq!(of(many(false), many(true)), Verdict::Equal);
    // As text, 9.9999 is after 10.
    let numbers = |off: f64| json!({"tags": (0..100).map(|number| f64::from(number) - off).collect::<Vec<_>>()});
    assert_eq!(of(numbers(0.0), numbers(1e-4)), Verdict::WithinTolerance);
}

#[test]
fn an_item_that_is_close_to_two_does_not_take_the_one_that_another_needs() {
    let unordered = rules(0.01, &[], &["$"]);
    assert_eq!(compare_json(&json!([1.009, 1.0]), &json!([1.0089, 1.018]), &unordered), Verdict::WithinTolerance);
    assert_eq!(compare_json(&json!([1.0, 1.009]), &json!([1.0, 0.991]), &unordered), Verdict::WithinTolerance);
    assert_eq!(compare_json(&json!([1.0, 1.009]), &json!([1.0, 0.98]), &unordered), different(&["$[*]"]));
}

#[test]
fn a_comparison_that_takes_too_long_is_given_up() {
    // Lists in lists in lists, each without an order: 30 x 30 x 30 items, and the square of that to compare.
    let answer = |last: usize| {
        let inner: Vec<usize> = (0..29).chain([last]).collect();
        json!({"a": vec![json!({"b": vec![json!({"c": inner}); 30]}); 30]})
    };
    let places = ["$.a", "$.a[*].b", "$.a[*].b[*].c"];
    assert_eq!(compare_json(&answer(29), &answer(30), &rules(0.0, &[], &places)), Verdict::TooMuchWork);
    assert_eq!(
        compare_json(&answer(29), &answer(30), &rules(0.0, &[], &["$.a[*].b[*].c"])),
        different(&["$.a[*].b[*].c[*]"])
    );
}

#[test]
fn what_is_not_json_is_compared_byte_by_byte() {
    let plain = rules(0.0, &[], &[]);
    assert_eq!(compare(b"text", b"text", &plain), Verdict::Equal);
    assert_eq!(compare(b"text", b"test", &plain), different(&["$"]));
    assert_eq!(compare(b"{\"a\": 1}", b"{\"a\":1}", &plain), Verdict::Equal);
    assert_eq!(compare(b"{\"a\": 1}", b"{\"a\":1", &plain), different(&["$"]));
    assert_eq!(compare(b"", b"", &plain), Verdict::Equal);
}

#[test]
fn no_more_places_are_told_than_can_be_looked_at() {
    let object = |value: u32| Value::Object((0..100).map(|number| (format!("field{number}"), json!(value))).collect());
    let Verdict::Different(places) = compare_json(&object(1), &object(2), &rules(0.0, &[], &[])) else { panic!() };
    assert_eq!(places.len(), MOST_PLACES);
}

#[test]
fn a_difference_tells_how_far_and_nothing_of_the_answers() {
    let live = json!({"score": 2.0, "label": "secret", "ok": true, "kind": null, "list": [1], "mine": "hidden"});
    let shadow = json!({"score": 1.5, "label": "other", "ok": false, "kind": 1, "list": [], "theirs": "hidden"});
    let Verdict::Different(found) = super::compare_json(&live, &shadow, &rules(0.0, &[], &[])) else { panic!() };
    let mut told: Vec<String> = found.iter().map(|it| format!("{}: {}", it.place, it.what)).collect();
    told.sort();
    let expected = [
        "$.kind: null and a number",
        "$.label: texts of 6 and 5 characters",
        "$.list: lists of 1 and 0",
        "$.mine: only in the live one",
        "$.ok: booleans",
        "$.score: numbers, by 25.000 %",
        "$.theirs: only in the shadow's",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_place_is_no_longer_than_can_be_kept() {
    let live = json!({"x".repeat(1_000_000): 1});
    let Verdict::Different(found) = super::compare_json(&live, &json!({}), &rules(0.0, &[], &[])) else { panic!() };
    assert_eq!((found.len(), found[0].place.chars().count()), (1, LONGEST_PLACE + 3));
    assert_eq!(JsonPath::parse(&found[0].place), Err(JsonPathError), "what is not told to its end cannot be ignored");
}
