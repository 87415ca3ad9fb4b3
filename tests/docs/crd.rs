//! `docs/reference/crd.md`, from the definition of `OnlineEndpoint`.

use inference_router::model::crd;
use serde_json::Value;

use crate::endpoint::{rows, schema};
use crate::{assert_page, cell};

const HEAD: &str = "\
# Custom resource

<!-- Generated from src/model/crd.rs and src/model/status.rs by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

In a Kubernetes cluster an endpoint is an object of the custom resource `OnlineEndpoint`. Its `spec` is described in
[Endpoint document](endpoint.md). This command prints the definition, which is also in `deploy/crd`:

```sh
inference-router crd
```
";

const CONDITIONS: &str = "
## Conditions

| condition | `True` means |
|---|---|
| `Accepted` | the spec is valid, and every object that it names exists and may be used |
| `Ready` | every deployment with traffic can take requests |
| `Scaled` | the router scales every workload whose `scaleSettings` ask for it |

A condition that is `False` has a `reason` for programs and a `message` that says what to change. The last known good
version of the endpoint keeps serving meanwhile.
";

#[test]
fn the_page_of_the_custom_resource_is_what_the_code_says() {
    let definition = crd::definition();
    let spec = &definition["spec"];
    let version = &spec["versions"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut page = format!("{HEAD}\n| | |\n|---|---|\n");
    for (name, value) in [
        ("group", text(&spec["group"])),
        ("version", text(&version["name"])),
        ("kind", text(&spec["names"]["kind"])),
        ("plural", text(&spec["names"]["plural"])),
        ("short name", text(&spec["names"]["shortNames"][0])),
        ("scope", text(&spec["scope"])),
    ] {
        page.push_str(&format!("| {name} | `{value}` |\n"));
    }
    page.push_str("\n## Columns of `kubectl get`\n\n| column | from | meaning |\n|---|---|---|\n");
    for column in version["additionalPrinterColumns"].as_array().unwrap() {
        let (name, from) = (text(&column["name"]), cell(&text(&column["jsonPath"])));
        page.push_str(&format!("| {name} | `{from}` | {} |\n", cell(&text(&column["description"]))));
    }
    page.push_str("\n## Status\n\n| field | type | default | meaning |\n|---|---|---|---|\n");
    rows(&schema("status"), "", &mut page);
    page.push_str(CONDITIONS);
    page.push_str(
        "\n## Rules\n\nThe API server refuses an object that breaks one of these rules, with the message shown. The router \
         checks the same rules for documents in files.\n\n| field | message |\n|---|---|\n",
    );
    let root = &version["schema"]["openAPIV3Schema"];
    rules(root, "", &mut page);
    assert_page("crd.md", &page);
}

/// A row for each rule of a schema, depth first.
fn rules(schema: &Value, path: &str, table: &mut String) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        let message = cell(rule["message"].as_str().unwrap_or_default());
        table.push_str(&format!("| `{}` | {message} |\n", field.trim_start_matches('.')));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(field, &format!("{path}.{name}"), table);
    }
    if schema["items"].is_object() {
        rules(&schema["items"], &format!("{path}[]"), table);
    }
}
