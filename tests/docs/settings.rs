//! `docs/reference/settings.md`, from the table of keys that also makes `config/reference.yaml`.

use inference_router::config::setting_keys;

use crate::{assert_page, cell};

const HEAD: &str = "\
# Settings

<!-- Generated from src/config/reference.rs by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

The settings file of the router process is the YAML file that `inference-router serve --config FILE` reads at start.
A file needs only the keys that it changes. [`config/reference.yaml`](../../config/reference.yaml) has the same keys as
one file to copy from. Unknown keys are errors; `inference-router check FILE` reports every problem of a file at once.

- Durations are a whole number with a unit: `500ms`, `10s`, `5m`, `1h`.
- Relative paths are relative to the settings file.
- Each key can be overridden by the environment variable in the table, whose value is YAML.
- Keys without a default are off until they are given.
- `fleet.lease` and `fleet.leaseSeconds` are accepted as other names of `fleet.leaderLock` and `fleet.termSeconds`.
";

#[test]
fn the_page_of_settings_is_what_the_code_says() {
    let mut page = HEAD.to_owned();
    let mut section = None;
    for key in setting_keys() {
        let of = key.path.split_once('.').map_or("process", |(section, _)| section);
        if section != Some(of) {
            section = Some(of);
            page.push_str(&format!("\n## `{of}`\n\n| key | default | meaning |\n|---|---|---|\n"));
        }
        let value = cell(&key.value);
        let default = if key.is_optional { format!("off; example: `{value}`") } else { format!("`{value}`") };
        let (path, variable, about) = (key.path, key.variable, cell(key.about));
        page.push_str(&format!("| `{path}`<br>`{variable}` | {default} | {about} |\n"));
    }
    assert_page("settings.md", &page);
}
