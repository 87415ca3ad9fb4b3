use super::*;

fn document_text(name: &str, traffic: u8) -> String {
    format!(
        "apiVersion: inference-router.dev/v1alpha1\n\
         kind: OnlineEndpoint\n\
         metadata: {{name: {name}}}\n\
         spec:\n  \
           authMode: none\n  \
           traffic: {{blue: {traffic}}}\n  \
           deployments:\n  \
           - name: blue\n    \
             instances: [\"127.0.0.1:5001\"]\n"
    )
}

fn problem_texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn one_document_needs_no_number() {
    let ParsedDocuments { endpoints, problems, .. } = parse(&document_text("first", 90), "e.yaml");
    assert!(endpoints.is_empty());
    assert_eq!(
        problem_texts(&problems),
        ["e.yaml: spec.traffic: sums to 90, but must sum to 100, or to 0 to close the endpoint"]
    );
}

#[test]
fn a_wrong_document_does_not_take_the_others_down() {
    let text = format!(
        "---\n{}---\n{}---\n# nothing\n---\n{}",
        document_text("first", 100),
        document_text("second", 7),
        document_text("third", 0)
    );
    let ParsedDocuments { endpoints, problems, .. } = parse(&text, "e.yaml");
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>(), ["first", "third"]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].source, "e.yaml, document 2 (second)");
    assert_eq!(problems[0].path, "spec.traffic");
}

#[test]
fn a_syntax_error_keeps_what_was_before_it() {
    let ParsedDocuments { endpoints, problems, .. } =
        parse(&format!("{}---\na: [\n---\nb: 1", document_text("first", 100)), "e.yaml");
    assert_eq!(endpoints.len(), 1);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problem_texts(&problems)[0].starts_with("e.yaml: line 1"), "{problems:?}");
}

#[test]
fn a_name_in_a_message_stays_on_its_line() {
    let text = format!("{}---\n{}", document_text("first", 100), document_text("\"two\\nlines\"", 100));
    let ParsedDocuments { endpoints: _, problems, .. } = parse(&text, "e.yaml");
    assert_eq!(problems[0].source, "e.yaml, document 2 (two\\nlines)");
}

#[test]
fn documents_of_another_kind_are_told_so() {
    let text = format!("{}---\napiVersion: v1\nkind: Secret\ndata: {{a: b}}\n", document_text("first", 100));
    let ParsedDocuments { endpoints, problems, .. } = parse(&text, "e.yaml");
    assert_eq!((endpoints.len(), problems.len()), (1, 1));
    assert!(problems[0].message.contains("\"Secret\", but must be `OnlineEndpoint`"));
    let ParsedDocuments { endpoints: _, problems, .. } = parse("just a text", "e.yaml");
    assert_eq!(
        problem_texts(&problems),
        ["e.yaml: is the text \"just a text\", but a mapping (lines of `key: value`) is expected"]
    );
}

#[test]
fn ten_thousand_endpoints_fit_into_one_file() {
    let text: Vec<String> = (0..10_000).map(|n| document_text(&format!("endpoint-{n}"), 100)).collect();
    let ParsedDocuments { endpoints, problems, .. } = parse(&text.join("---\n"), "e.yaml");
    assert_eq!((endpoints.len(), problem_texts(&problems)), (10_000, Vec::new()));
}
