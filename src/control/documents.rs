//! Endpoint documents in a YAML text: one document, or several separated by `---`.

use crate::model::endpoint::{Auth, Endpoint};
use crate::model::problem::Problem;
use crate::model::validate::{self, DocumentOrigin};

use super::yaml;

/// The documents of a text.
#[derive(Debug, Default)]
pub struct ParsedDocuments {
    /// The valid endpoints.
    pub endpoints: Vec<Endpoint>,
    /// All problems of the other documents.
    pub problems: Vec<Problem>,
    /// The names and authentication settings of invalid documents, as far as those are valid: keys are read elsewhere,
    /// and their problems belong to the same report.
    pub invalid_auth: Vec<(String, Auth)>,
}

/// Parses the documents of `text`.
///
/// Each problem names `source`, and the document within it if there are several.
pub fn parse(text: &str, source: &str) -> ParsedDocuments {
    let documents = yaml::parse_documents(text);
    let has_several = documents.len() > 1;
    let mut parsed = ParsedDocuments::default();
    for (index, document) in documents.into_iter().enumerate() {
        let document = match document {
            Ok(document) => document,
            Err(problem) => {
                parsed.problems.push(problem.from_source(source));
                continue;
            }
        };
        let name = document.pointer("/metadata/name").and_then(|name| name.as_str()).map(str::to_owned);
        match validate::decode_and_validate(document, DocumentOrigin::File) {
            Ok(endpoint) => parsed.endpoints.push(endpoint),
            Err(refused) => {
                let source =
                    if has_several { document_source(source, index, name.as_deref()) } else { source.to_owned() };
                parsed.problems.extend(refused.problems.into_iter().map(|problem| problem.from_source(&source)));
                parsed.invalid_auth.extend(refused.auth.map(|auth| (source, auth)));
            }
        }
    }
    parsed
}

/// Returns a name such as `endpoints.yaml, document 2 (my-endpoint)`. Empty documents are not counted.
fn document_source(source: &str, index: usize, name: Option<&str>) -> String {
    let name = name.map(|name| format!(" ({})", name.escape_debug())).unwrap_or_default();
    format!("{source}, document {}{name}", index + 1)
}

#[cfg(test)]
mod tests;
