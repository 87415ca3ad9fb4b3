//! `docs/reference/cli.md`, from the definitions of the commands.

use clap::{Command, CommandFactory};
use inference_router::cli::Cli;

use crate::{assert_page, cell};

const HEAD: &str = "\
# Command line

<!-- Generated from src/cli.rs by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

Results are written to standard output, logs to standard error. `--help` of each command prints its options with an
example.

| exit code | meaning |
|---|---|
| 0 | the command did what it was asked to do |
| 1 | it failed, or `check` found problems |
| 2 | the command line is wrong |
| 78 | the settings file or an endpoint document is wrong |

`inference-router serve` ends in order on SIGTERM and SIGINT (Ctrl-C). `/readyz` answers 503 while requests are still
accepted for `shutdown.unreadyDelay`. Then no connection is accepted any more, and requests in flight may take
`shutdown.drainTimeout` at most; the exit code is 1 if some had to be cut. A second signal ends the process at once, with
exit code 1.
";

#[test]
fn the_page_of_commands_is_what_the_code_says() {
    let mut root = Cli::command();
    root.build();
    let mut page = HEAD.to_owned();
    for command in root.get_subcommands_mut() {
        describe(command, "inference-router", &mut page);
    }
    assert_page("cli.md", &page);
}

fn describe(command: &mut Command, parent: &str, page: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    page.push_str(&format!("\n## `{name}`\n\n"));
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    page.push_str(&format!("{}\n", cell(&about)));
    if command.has_subcommands() {
        for command in command.get_subcommands_mut() {
            describe(command, &name, page);
        }
        return;
    }
    page.push_str(&format!("\n```text\n{}\n```\n", command.render_usage().to_string().trim_start_matches("Usage: ")));
    let options: Vec<_> =
        command.get_arguments().filter(|option| !option.is_hide_set() && option.get_id() != "help").collect();
    if !options.is_empty() {
        page.push_str("\n| option | default | meaning |\n|---|---|---|\n");
    }
    for option in options {
        let value =
            option.get_value_names().into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let flag = match (option.get_long(), option.get_short()) {
            (Some(long), Some(short)) => format!("-{short}, --{long}"),
            (Some(long), None) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => String::new(),
        };
        let takes_value = option.get_action().takes_values();
        let written = if takes_value { format!("{flag} {value}") } else { flag };
        let default = option.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy()));
        let default = default.collect::<Vec<_>>().join(" ");
        let default = match (takes_value, option.is_required_set()) {
            (true, true) => "required".to_owned(),
            (true, false) => default,
            (false, _) => String::new(),
        };
        let help = option.get_long_help().or(option.get_help()).map(ToString::to_string).unwrap_or_default();
        page.push_str(&format!("| `{}` | {default} | {} |\n", cell(written.trim()), cell(&help)));
    }
    if let Some(example) = command.get_after_long_help().or(command.get_after_help()) {
        page.push_str(&format!("\n```text\n{}\n```\n", example.to_string().trim_end()));
    }
}
