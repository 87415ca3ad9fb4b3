//! `docs/reference/endpoint.md`, from the schema of `OnlineEndpoint`.

use inference_router::model::crd;
use serde_json::Value;

use crate::{assert_page, cell};

const HEAD: &str = "\
# Endpoint document

<!-- Generated from src/model/resource.rs and src/model/crd.rs by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

An endpoint is described by one document of `apiVersion: inference-router.dev/v1alpha1` and `kind: OnlineEndpoint`. It is
a YAML document in a file, or an object in a Kubernetes cluster; both have the same schema and the same rules. A file may
hold several documents, separated by `---`. Unknown fields are errors. All problems are reported at once, each with
file, field, what is wrong and what would be right:

```sh
inference-router check endpoints/
```

Names have 3 to 32 characters: letters, digits and single inner dashes, with a letter first. Names are compared without
case. The name of an endpoint is unique over all files, or over all watched namespaces of a cluster.

| in files only | in a cluster only |
|---|---|
| `keys.primary`, `keys.secondary`, `deployments[].instances`, `deployments[].process`, paths to certificate and token files | `keys.secretRef`, `deployments[].targetRef`, `upstreamTls.secretRef` |

`metadata.name` is the name of the endpoint. `metadata.namespace` is the namespace of the object; in files it is only
displayed. All other fields below are under `spec`.
";

/// The schema of `spec`, or of `status`.
pub(crate) fn schema(part: &str) -> Value {
    let definition = crd::definition();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part].clone()
}

/// A row of the table for each field of an object, depth first, required by what `path` is below.
pub(crate) fn rows(schema: &Value, path: &str, table: &mut String) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, field) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let is_required = schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name.as_str()));
        let default = match &field["default"] {
            Value::Null if is_required => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let about = cell(field["description"].as_str().unwrap_or_default());
        table.push_str(&format!("| `{path}` | {} | {default} | {about} |\n", kind(field)));
        match field["type"].as_str() {
            Some("array") => rows(&field["items"], &format!("{path}[]"), table),
            _ => rows(field, &path, table),
        }
    }
}

/// Type and range of a field.
fn kind(field: &Value) -> String {
    if let Some(words) = field["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    if let Some(values) = field["additionalProperties"].as_object() {
        return format!("map of name to {}", kind(&Value::Object(values.clone())));
    }
    let name = field["type"].as_str().unwrap_or("any");
    match (name, field["minimum"].as_f64(), field["maximum"].as_f64()) {
        ("array", ..) => format!("list of {}", kind(&field["items"])),
        (_, Some(least), Some(most)) => format!("{name}, {least} to {most}"),
        (_, Some(least), None) => format!("{name}, at least {least}"),
        _ => name.to_owned(),
    }
}

#[test]
fn the_page_of_endpoint_documents_is_what_the_code_says() {
    let mut page = format!("{HEAD}\n| field | type | default | meaning |\n|---|---|---|---|\n");
    rows(&schema("spec"), "", &mut page);
    assert_page("endpoint.md", &page);
}
