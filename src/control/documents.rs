//! Endpoint documents in a YAML text: one, or several with `---` between them.

use crate::model::endpoint::Endpoint;
use crate::model::problem::Problem;
use crate::model::validate;

use super::yaml;

/// The endpoints of `text` that are in order, and everything that is wrong with the others.
///
/// Each problem says `source`, and the document within it when there are several.
pub fn parse(text: &str, source: &str) -> (Vec<Endpoint>, Vec<Problem>) {
    let documents = yaml::documents(text);
    let several = documents.len() > 1;
    let (mut endpoints, mut problems) = (Vec::new(), Vec::new());
    for (index, document) in documents.into_iter().enumerate() {
        let document = match document {
            Ok(document) => document,
            Err(problem) => {
                problems.push(problem.from_source(source));
                continue;
            }
        };
        let name = document.pointer("/metadata/name").and_then(|name| name.as_str()).map(str::to_owned);
        match validate::read(document) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(found) => {
                let source = if several { place(source, index, name.as_deref()) } else { source.to_owned() };
                problems.extend(found.into_iter().map(|problem| problem.from_source(&source)));
            }
        }
    }
    (endpoints, problems)
}

/// `endpoints.yaml, document 2 (my-endpoint)`; empty documents do not count.
fn place(source: &str, index: usize, name: Option<&str>) -> String {
    let name = name.map(|name| format!(" ({})", name.escape_debug())).unwrap_or_default();
    format!("{source}, document {}{name}", index + 1)
}

#[cfg(test)]
mod tests;
