//! Checks the layers of `ARCHITECTURE.md`: which module imports which, that decisions have neither clock nor input nor
//! output, and that names are unique and say what they mean.
//!
//! It reads the sources as tokens, not as text: comments and strings do not count.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::slice::Iter;

/// Each top-level module with its floor. It imports only from lower floors and from itself.
const MODULE_FLOORS: [(&str, u8); 14] = [
    ("model", 0),
    ("policy", 1),
    ("state", 2),
    ("simulate", 2),
    ("guard", 2),
    ("model_server", 2),
    ("proxy", 3),
    ("control", 3),
    ("admin", 3),
    ("config", 4),
    ("app", 4),
    ("cli", 5),
    ("main", 5),
    ("lib", 5),
];
/// Programs of their own inside the binary: they import nothing of the crate.
const STANDALONE_MODULES: [&str; 2] = ["guard", "model_server"];
/// The only steps to a neighbour on the same floor.
const ALLOWED_SAME_FLOOR_IMPORTS: [(&str, &str); 2] = [("app", "config"), ("main", "cli")];

/// Floors up to this one decide without doing anything.
const HIGHEST_PURE_FLOOR: u8 = 1;
/// Crates that decisions must not know.
const IMPURE_CRATES: [&str; 18] = [
    "arc_swap",
    "axum",
    "http",
    "http_body",
    "http_body_util",
    "hyper",
    "hyper_util",
    "mimalloc",
    "notify",
    "prometheus",
    "rustix",
    "rustls",
    "socket2",
    "tokio",
    "tokio_rustls",
    "tower",
    "tracing",
    "tracing_subscriber",
];
/// What decisions must not call or name, as the end of a path.
const IMPURE_PATH_SUFFIXES: [&[&str]; 16] = [
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["Instant", "now"],
    &["SystemTime"],
    &["TcpListener"],
    &["TcpStream"],
    &["UdpSocket"],
    &["UnixListener"],
    &["UnixStream"],
    &["ToSocketAddrs"],
    &["rand", "rng"],
    &["rand", "random"],
    &["ThreadRng"],
    &["println"],
];

const MAX_FILE_LINES: usize = 600;

/// Bare verbs and particles that say nothing about what a function works on. No function that other modules call has
/// one of these names: `of` is `from_headers`, `forget` is `remove_pool`, `note` is `apply_event`.
const NAMES_WITHOUT_OBJECT: [&str; 34] = [
    "ask", "asked", "come", "find", "fit", "forget", "give", "go", "hear", "hold", "keep", "land", "leave", "left",
    "look", "news", "note", "of", "open", "own", "pass", "put", "said", "say", "see", "settle", "surely", "take",
    "taken", "tell", "told", "trail", "until", "word",
];

#[test]
fn files_import_only_from_lower_floors_and_decisions_are_pure() {
    let wrong: Vec<String> = sources().into_iter().flat_map(|(path, text)| check(&path, &text)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_can_be_read_at_a_sitting() {
    let long = sources().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long: Vec<_> = long.filter(|(_, lines)| *lines > MAX_FILE_LINES).collect();
    assert!(long.is_empty(), "more than {MAX_FILE_LINES} lines: {long:?}");
}

#[test]
fn a_type_name_means_one_thing() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources_and_tests() {
        for (line, name) in type_names(&tokens(&text)) {
            places.entry(name).or_default().push(format!("src/{}:{line}", path.display()));
        }
    }
    assert!(places.len() > 400, "only {} types found", places.len());
    let twice: Vec<_> = places.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "these names mean several things: {twice:#?}");
}

#[test]
fn functions_that_other_modules_call_name_their_object() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (line, name) in visible_functions(&without_tests(tokens(&text))) {
            if NAMES_WITHOUT_OBJECT.contains(&name.as_str()) {
                wrong.push(format!("src/{}:{line}: {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "say what these work on:\n{}", wrong.join("\n"));
}

#[test]
fn types_and_visible_functions_are_found() {
    let text = "pub struct A; impl B { type C = D; pub(in crate::x) async fn of() {} fn own() {} }\n\
                macro! { pub enum E {} } trait F { type G; fn see(&self); } type H = u8; // struct I;\n\
                pub const fn take() {} fn f() { struct J; let kind = r#type; }";
    let tokens = tokens(text);
    let types: Vec<_> = type_names(&tokens).into_iter().map(|(_, name)| name).collect();
    assert_eq!(types, ["A", "E", "F", "H", "J"]);
    assert_eq!(visible_functions(&tokens), [(1, "of".to_owned()), (3, "take".to_owned())]);
}

#[test]
fn the_checker_sees_each_kind_of_wrong() {
    for (path, text, line, what) in [
        ("model/a.rs", "use crate::policy::split::Split;", 1, "model imports policy"),
        ("state/a.rs", "//!\n\nuse crate::{model::name, proxy::Shared};", 3, "state imports proxy"),
        ("proxy/a.rs", "fn f(x: &crate::control::index::Index) {}", 1, "proxy imports control"),
        ("proxy/a/b.rs", "use super::super::super::admin::Admin;", 1, "proxy imports admin"),
        ("control/mod.rs", "use super::{model::name, proxy::Shared};", 1, "control imports proxy"),
        ("config.rs", "use crate::app::App;", 1, "config imports app"),
        ("guard.rs", "use crate::model::name::Name;", 1, "guard imports model"),
        ("model_server/a.rs", "use crate::state::slots;", 1, "model_server imports state"),
        ("app.rs", "use crate::elsewhere::X;", 1, "`elsewhere` has no floor"),
        ("elsewhere.rs", "", 1, "`elsewhere` has no floor"),
        ("policy/a.rs", "use tokio::time;", 1, "names tokio"),
        ("policy/a.rs", "fn f() -> http::StatusCode {}", 1, "names http"),
        ("policy/a.rs", "use std::{fmt, fs};", 1, "names std::fs"),
        ("policy/a.rs", "fn f() { let v = std::env::var(\"x\"); }", 1, "names std::env"),
        ("policy/a.rs", "use std::time::Instant;\nfn f() { Instant::now(); }", 2, "names Instant::now"),
        ("policy/a.rs", "fn f(at: std::time::SystemTime) {}", 1, "names SystemTime"),
        ("policy/a.rs", "use std::net::{IpAddr, TcpStream};", 1, "names TcpStream"),
        ("policy/a.rs", "fn f() { rand::rng().random() }", 1, "names rand::rng"),
        ("policy/a.rs", "fn f() { x()\n.unwrap() }", 2, "calls unwrap"),
        ("model/a.rs", "fn f() { x.expect(\"y\") }", 1, "calls expect"),
        ("policy/a.rs", "#[cfg(test)]\nmod tests { use tokio::time; }\nuse hyper::body;", 3, "names hyper"),
    ] {
        let wrong = check(Path::new(path), text);
        assert_eq!(wrong, [format!("src/{path}:{line}: {what}")], "{text}");
    }
}

#[test]
fn the_checker_lets_the_rest_pass() {
    for (path, text) in [
        ("model/a.rs", "use super::b::C; use crate::model::d; // crate::proxy, tokio::time"),
        ("policy/a.rs", "/* use tokio::x; /* .unwrap() */ */ use crate::model::name; use std::time::Instant;"),
        (
            "policy/a.rs",
            "const A: &str = \"crate::proxy \\\" std::fs\"; const B: &str = r#\"tokio::\"#; const C: char = '\"';",
        ),
        ("policy/a.rs", "fn f<'a>(x: &'a mut impl rand::Rng) { x.unwrap_or(1); x.expects(); env!(\"A\"); '\\''; }"),
        (
            "policy/a.rs",
            "#[cfg(test)]\nmod tests;\n#[cfg(test)] #[allow(x)]\nmod t { fn f() { x.unwrap(); { tokio::x() } } }",
        ),
        ("state/a.rs", "use http::HeaderValue; use tokio::sync::watch; fn f() { Instant::now(); }"),
        ("app.rs", "use crate::config::Settings; use crate::proxy::Shared; pub(crate) fn f() {}"),
        ("control/a.rs", "use crate::guard::NOT_STARTED; use super::super::model::name;"),
        ("main.rs", "use inference_router::cli::Cli;"),
    ] {
        assert_eq!(check(Path::new(path), text), <[String; 0]>::default(), "{text}");
    }
}

/// Every source file that is not only for tests, by its path below `src/`.
fn sources() -> Vec<(PathBuf, String)> {
    let mut sources = sources_and_tests();
    sources.retain(|(path, _)| path.iter().all(|step| Path::new(step).file_stem().is_none_or(|stem| stem != "tests")));
    sources
}

/// Every source file, by its path below `src/`.
fn sources_and_tests() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(&root).unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((below.to_owned(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 50, "only {} sources found", found.len());
    found.sort();
    found
}

/// What is wrong with the file at `path`, which is below `src/`.
fn check(path: &Path, text: &str) -> Vec<String> {
    let module = module(path);
    let room = module.first().map_or_else(|| path.file_stem().unwrap().to_str().unwrap(), String::as_str);
    let say = |line: usize, what: String| format!("src/{}:{line}: {what}", path.display());
    let Some(floor) = floor_of(room) else { return vec![say(1, format!("`{room}` has no floor"))] };
    let tokens = without_tests(tokens(text));
    let mut wrong = Vec::new();
    for (line, path) in paths(&tokens) {
        if let Some(target) = resolve_import(&path, &module).and_then(|target| target.into_iter().next())
            && target != room
        {
            match self::floor_of(&target) {
                None => wrong.push(say(line, format!("`{target}` has no floor"))),
                Some(_) if STANDALONE_MODULES.contains(&room) => {
                    wrong.push(say(line, format!("{room} imports {target}")))
                }
                Some(other) if other < floor || ALLOWED_SAME_FLOOR_IMPORTS.contains(&(room, &target)) => {}
                Some(_) => wrong.push(say(line, format!("{room} imports {target}"))),
            }
        }
        if floor <= HIGHEST_PURE_FLOOR {
            let is_crate = path.len() > 1 && IMPURE_CRATES.contains(&path[0].as_str());
            let crates = is_crate.then(|| path[0].clone());
            let ends = IMPURE_PATH_SUFFIXES.iter().find(|end| path.windows(end.len()).any(|part| part == **end));
            wrong.extend(crates.or(ends.map(|end| end.join("::"))).map(|what| say(line, format!("names {what}"))));
        }
    }
    if floor <= HIGHEST_PURE_FLOOR {
        for call in tokens.windows(3) {
            let [(_, dot), (line, name), (_, open)] = call else { continue };
            if dot == "." && (name == "unwrap" || name == "expect") && open == "(" {
                wrong.push(say(*line, format!("calls {name}")));
            }
        }
    }
    wrong
}

fn floor_of(module: &str) -> Option<u8> {
    MODULE_FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// `proxy/service.rs` is `proxy::service`; `lib.rs` and `main.rs` are the root.
fn module(path: &Path) -> Vec<String> {
    let mut steps: Vec<String> = path.with_extension("").iter().map(|step| step.to_str().unwrap().to_owned()).collect();
    steps.pop_if(|last| last == "mod" || last == "lib" || last == "main");
    steps
}

/// A path from the root of the crate; `None` when it does not say where it starts.
fn resolve_import(path: &[String], module: &[String]) -> Option<Vec<String>> {
    let up = path.iter().take_while(|step| *step == "super").count();
    let (start, rest) = match path[0].as_str() {
        "crate" | "inference_router" if path.len() > 1 => (&[][..], &path[1..]),
        "super" => (&module[..module.len().saturating_sub(up)], &path[up..]),
        _ => return None,
    };
    Some([start, rest].concat())
}

type Token = (usize, String);

/// Names and single characters with their lines, without comments, strings and characters.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut line, mut at) = (Vec::new(), 1, 0);
    while at < chars.len() {
        let (rest, start) = (&chars[at..], at);
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => string(rest),
            ['\'', '\\', _, tail @ ..] => 3 + tail.iter().position(|c| *c == '\'').map_or(tail.len(), |end| end + 1),
            ['\'', _, '\'', ..] => 3,
            [first, ..] if first.is_alphanumeric() || *first == '_' => {
                let name: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let length = name.chars().count();
                match raw_string(&name, &rest[length..]) {
                    Some(more) => length + more,
                    None => {
                        tokens.push((line, name));
                        length
                    }
                }
            }
            [first, ..] => {
                if !first.is_whitespace() {
                    tokens.push((line, first.to_string()));
                }
                1
            }
            [] => 1,
        };
        line += chars[start..at.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a string from its first quote.
fn string(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Length of a raw string after its prefix, if this is one.
fn raw_string(prefix: &str, text: &[char]) -> Option<usize> {
    let hashes = text.iter().take_while(|c| **c == '#').count();
    if !matches!(prefix, "r" | "br" | "cr") || text.get(hashes) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &text[hashes + 1..];
    let length = body.windows(end.len()).position(|part| part == end).unwrap_or(body.len());
    Some(hashes + 1 + length + end.len())
}

/// Types that a file declares, with their lines. The associated types of a trait or an `impl` are not among them.
fn type_names(tokens: &[Token]) -> Vec<(usize, String)> {
    let (mut found, mut depth) = (Vec::new(), 0);
    for pair in tokens.windows(2) {
        let [(_, keyword), (line, name)] = pair else { continue };
        match keyword.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "struct" | "enum" | "trait" | "union" if is_type_name(name) => found.push((*line, name.clone())),
            "type" if depth == 0 && is_type_name(name) => found.push((*line, name.clone())),
            _ => {}
        }
    }
    found
}

fn is_type_name(token: &str) -> bool {
    token.starts_with(char::is_uppercase)
}

/// Functions that are visible outside of their module, with their lines.
fn visible_functions(tokens: &[Token]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, (_, token))| token == "pub") {
        let mut rest = tokens[at + 1..].iter().map(|(line, token)| (*line, token.as_str())).peekable();
        if rest.next_if(|(_, token)| *token == "(").is_some() {
            rest.find(|(_, token)| *token == ")");
        }
        while rest.next_if(|(_, token)| matches!(*token, "const" | "async" | "unsafe")).is_some() {}
        if rest.next().is_some_and(|(_, token)| token == "fn")
            && let Some((line, name)) = rest.next()
        {
            found.push((line, name.to_owned()));
        }
    }
    found
}

/// Leaves out what has `#[cfg(test)]` before it, up to its `;` or its closing brace.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    const CFG_TEST_TOKENS: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].iter().take(CFG_TEST_TOKENS.len()).map(|(_, token)| token.as_str()).eq(CFG_TEST_TOKENS) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let mut depth = 0;
        at += CFG_TEST_TOKENS.len();
        while let Some((_, token)) = tokens.get(at) {
            at += 1;
            match token.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && (token == "}" || token == ";") {
                break;
            }
        }
    }
    kept
}

/// Every path in the tokens, trees of `use` taken apart.
fn paths(tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let (mut found, mut rest) = (Vec::new(), tokens.iter().peekable());
    while let Some((line, token)) = rest.peek() {
        if is_name(token) && token != "use" {
            expand_use_tree(&mut rest, *line, Vec::new(), &mut found);
        } else {
            let is_use = token == "use";
            rest.next();
            if is_use {
                expand_use_tree(&mut rest, 0, Vec::new(), &mut found);
            }
        }
    }
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// One path, or the tree that a group of braces makes of it.
fn expand_use_tree(
    rest: &mut Peekable<Iter<'_, Token>>,
    mut line: usize,
    mut path: Vec<String>,
    found: &mut Vec<(usize, Vec<String>)>,
) {
    loop {
        match rest.peek() {
            Some((at, name)) if is_name(name) => {
                (line, path) = (*at, [path, vec![name.clone()]].concat());
                rest.next();
            }
            Some((_, open)) if open == "{" => {
                rest.next();
                while let Some((_, token)) = rest.peek() {
                    match token.as_str() {
                        "}" => {
                            rest.next();
                            return;
                        }
                        "," => drop(rest.next()),
                        name if is_name(name) => expand_use_tree(rest, line, path.clone(), found),
                        _ => drop(rest.next()),
                    }
                }
                return;
            }
            _ => {}
        }
        // Two colons go on; anything else ends the path.
        let mut ahead = rest.clone();
        if !(ahead.next().is_some_and(|(_, t)| t == ":") && ahead.next().is_some_and(|(_, t)| t == ":")) {
            break;
        }
        let next = ahead.peek().map(|(_, token)| token.as_str());
        if !next.is_some_and(|token| is_name(token) || token == "{") {
            break;
        }
        *rest = ahead;
    }
    found.push((line, path));
}
