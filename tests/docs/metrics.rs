//! `docs/reference/metrics.md`, from the metric families that the program registers.

use inference_router::control::fleet::describe_fleet_metrics;
use inference_router::state::gauges::describe_gauges;
use inference_router::state::metrics::{FamilyDescription, Metrics};

use crate::{assert_page, cell};

const HEAD: &str = "\
# Metrics

<!-- Generated from the registered metric families by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

`GET /metrics` on the admin listener answers in the Prometheus text format. Times are in seconds, sizes in bytes; a
metric with `timestamp` in its name is a Unix time. Labels take configured names and closed sets of words only, so no
client can create a series. Names, labels and units are stable: a change of one is a breaking change and is listed in
the changelog.

- `endpoint_name` and `deployment_name` are empty where a request names none.
- `code` is the status that the client got; 499 stands for a client that left before there was one. `model_code` is the
  status of the model, empty where the model gave none.
- The `reason` of a rejected request is its [error code](errors.md). A response that broke off midway counts as
  `response_broke_off`.
- [Monitoring](../operations/monitoring.md) says which of these to watch and to alert on.

| metric | type | labels | meaning |
|---|---|---|---|
";

/// Every metric family of the program, by name.
fn metric_families() -> Vec<FamilyDescription> {
    let parts = [Metrics::new().unwrap().descriptions, describe_gauges().unwrap(), describe_fleet_metrics().unwrap()];
    let mut families = parts.concat();
    families.sort_by(|one, other| one.name.cmp(&other.name));
    families
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    let mut page = HEAD.to_owned();
    for family in metric_families() {
        let labels = family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        page.push_str(&format!("| `{}` | {} | {labels} | {} |\n", family.name, family.kind, cell(&family.help)));
    }
    assert_page("metrics.md", &page);
}

#[test]
fn metric_names_follow_the_conventions_of_prometheus() {
    for family in metric_families() {
        let (name, kind) = (family.name.as_str(), family.kind);
        assert!(name.starts_with("inference_router_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}: counters, and only they, end in _total");
        assert!(!name.contains("_ms") && !name.contains("millis"), "{name}: times are in seconds");
        if kind == "histogram" {
            assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name}: a histogram says its unit");
        }
        // The Prometheus operator sets these itself and renames ours to `exported_endpoint`.
        for taken in ["endpoint", "deployment", "job", "instance", "namespace", "pod", "service", "container"] {
            assert!(
                !family.labels.iter().any(|label| label == taken),
                "{name}: the label {taken} belongs to the scraper"
            );
        }
        assert!(
            family.help.ends_with('.') && family.help.len() > 15,
            "{name}: its help is a sentence: {}",
            family.help
        );
    }
}
