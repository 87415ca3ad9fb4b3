//! Endpoint documents in a YAML text: one, or several with `---` between them.

use crate::model::endpoint::{Auth, Endpoint};
use crate::model::problem::Problem;
use crate::model::validate::{self, Origin};

use super::yaml;

/// What a text says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The endpoints that are in order.
    pub endpoints: Vec<Endpoint>,
    /// Everything that is wrong with the others.
    pub problems: Vec<Problem>,
    /// Of the others, where they are and who may call, as far as that is in order: keys are read elsewhere, and what is
    /// wrong with them belongs to the same report.
    pub refused: Vec<(String, Auth)>,
}

/// The endpoints of `text` that are in order, and everything that is wrong with the others.
///
/// Each problem says `source`, and the document within it when there are several.
pub fn parse(text: &str, source: &str) -> Parsed {
    let documents = yaml::documents(text);
    let several = documents.len() > 1;
    let mut parsed = Parsed::default();
    for (index, document) in documents.into_iter().enumerate() {
        let document = match document {
            Ok(document) => document,
            Err(problem) => {
                parsed.problems.push(problem.from_source(source));
                continue;
            }
        };
        let name = document.pointer("/metadata/name").and_then(|name| name.as_str()).map(str::to_owned);
        match validate::read(document, Origin::File) {
            Ok(endpoint) => parsed.endpoints.push(endpoint),
            Err(refused) => {
                let source = if several { place(source, index, name.as_deref()) } else { source.to_owned() };
                parsed.problems.extend(refused.problems.into_iter().map(|problem| problem.from_source(&source)));
                parsed.refused.extend(refused.auth.map(|auth| (source, auth)));
            }
        }
    }
    parsed
}

/// `endpoints.yaml, document 2 (my-endpoint)`; empty documents do not count.
fn place(source: &str, index: usize, name: Option<&str>) -> String {
    let name = name.map(|name| format!(" ({})", name.escape_debug())).unwrap_or_default();
    format!("{source}, document {}{name}", index + 1)
}

#[cfg(test)]
mod tests;
