//! Every command line of the program that a page shows in a shell block is one that the program understands.

use clap::Parser;
use inference_router::cli::Cli;

use crate::pages;

/// How a shell block may call the program.
const PROGRAMS: [&str; 3] =
    ["inference-router", "target/release/inference-router", "target/optimized/inference-router"];
/// Words that end a simple command.
const ENDS: [&str; 9] = ["|", "||", "&&", "&", ";", ">", "2>", "<", ")"];

#[test]
fn every_command_line_shown_parses() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in pages() {
        for line in shell_lines(&text) {
            for words in calls(&line) {
                seen += 1;
                if let Err(error) = Cli::try_parse_from(&words)
                    && error.use_stderr()
                {
                    wrong.push(format!("{}: {line}\n{error}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} command lines found");
}

/// The lines of shell blocks, with continued lines joined and prompts removed. An indented block counts too.
fn shell_lines(text: &str) -> Vec<String> {
    let (mut lines, mut fence, mut held) = (Vec::<String>::new(), None, String::new());
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_none() { Some(language.trim().to_owned()) } else { None };
            continue;
        }
        let is_shell = match &fence {
            Some(language) => matches!(language.as_str(), "sh" | "bash" | "shell" | "console"),
            None => line.starts_with("    "),
        };
        if !is_shell {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(begun) => held.push_str(begun),
            None => lines.push(std::mem::take(&mut held) + line),
        }
    }
    lines
}

/// The calls of the program in a line, as words.
fn calls(line: &str) -> Vec<Vec<String>> {
    let words = words(line.trim().trim_start_matches("$ "));
    let mut calls = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let is_command = at == 0
            || ENDS.contains(&words[at - 1].as_str())
            || words[at - 1].ends_with("$(")
            || words[..at]
                .iter()
                .all(|before| before.contains('=') || matches!(before.as_str(), "sudo" | "exec" | "time"));
        let rest = &words[at + 1..];
        let rest = match word.trim_start_matches("$(") {
            name if PROGRAMS.contains(&name) && is_command => rest,
            // `cargo run --release -- demo`
            "cargo" if rest.first().is_some_and(|word| word == "run") => {
                match rest.iter().position(|word| word == "--") {
                    Some(dashes) => &rest[dashes + 1..],
                    None => continue,
                }
            }
            _ => continue,
        };
        let end =
            rest.iter().position(|word| ENDS.contains(&word.as_str()) || word.starts_with('#')).unwrap_or(rest.len());
        let mut call = vec!["inference-router".to_owned()];
        call.extend(rest[..end].iter().map(|word| word.trim_end_matches(')').to_owned()));
        calls.push(call);
    }
    calls
}

/// A line in words, as a shell takes it apart. Quotes are removed; variables stand for themselves.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in line.chars() {
        match (quote, character) {
            (Some(mark), _) if mark == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, ';' | ')') => {
                words.extend(word.take());
                words.push(character.to_string());
            }
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[test]
fn calls_are_found_where_a_shell_would_run_them() {
    let of = |line| calls(line).into_iter().map(|words| words[1..].join(" ")).collect::<Vec<_>>();
    assert_eq!(of("inference-router crd | kubectl apply -f -"), ["crd"]);
    assert_eq!(of("$ A=1 inference-router serve --config 'a b.yaml' &"), ["serve --config a b.yaml"]);
    assert_eq!(of("cargo run --release -- demo --port 1 # comment"), ["demo --port 1"]);
    assert_eq!(of("TOKEN=$(inference-router token --endpoint e)"), <[&str; 0]>::default());
    assert_eq!(of("kubectl -n inference-router get pods"), <[&str; 0]>::default());
    assert_eq!(of("cargo test"), <[&str; 0]>::default());
}
