//! Validation of paths on a model: `/score`, `/v1/models/half_plus_two:predict`.

/// The longest path, in bytes. The size of request heads is limited, and a path must leave room for the query and the
/// header fields.
const MAX_PATH_BYTES: usize = 4096;

/// Why a text is not the path of a URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path does not start with `/`.
    #[error("must start with `/`")]
    NoLeadingSlash,
    /// The path contains a `?`.
    #[error("has a query; the query of the client's request is what the model gets")]
    Query,
    /// The path contains a `#`.
    #[error("has a `#`, which never reaches a server")]
    Fragment,
    /// The path contains this character, which has to be written as the text.
    #[error("has {0:?}, which a path cannot have; write it as `{1}`")]
    Character(char, String),
    /// The path has this many characters.
    #[error("has {0} characters, but {MAX_PATH_BYTES} is the most")]
    Length(usize),
    /// The path contains a `%` that is not followed by two hexadecimal digits.
    #[error("has a `%` without two hexadecimal digits after it; write `%25` for a percent sign")]
    Percent,
}

/// Checks `path` against RFC 3986, section 3.3.
///
/// # Errors
///
/// The first problem of the path.
pub fn validate_uri_path(path: &str) -> Result<(), PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NoLeadingSlash);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::Length(path.len()));
    }
    for (at, character) in path.char_indices() {
        match character {
            '?' => return Err(PathError::Query),
            '#' => return Err(PathError::Fragment),
            '%' if !path.as_bytes()[at + 1..].iter().take(2).filter(|b| b.is_ascii_hexdigit()).count().eq(&2) => {
                return Err(PathError::Percent);
            }
            '%' => {}
            _ if is_path_character(character) => {}
            _ => return Err(PathError::Character(character, percent_encoded(character))),
        }
    }
    Ok(())
}

fn is_path_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@".contains(character)
}

fn percent_encoded(character: char) -> String {
    character.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_known_model_servers_are_taken() {
        for good in ["/", "/score", "/v1/models/half_plus_two:predict", "/v2/models/m/infer", "/a%20b", "/~x/(y)/@z"] {
            assert_eq!(validate_uri_path(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn each_slip_is_told_apart() {
        let character = |c: char, code: &str| PathError::Character(c, code.to_owned());
        for (bad, why) in [
            ("", PathError::NoLeadingSlash),
            ("score", PathError::NoLeadingSlash),
            ("http://model/score", PathError::NoLeadingSlash),
            ("/score?x=1", PathError::Query),
            ("/score#top", PathError::Fragment),
            ("/a b", character(' ', "%20")),
            ("/a\nb", character('\n', "%0A")),
            ("/ä", character('ä', "%C3%A4")),
            ("/{id}", character('{', "%7B")),
            ("/a%2", PathError::Percent),
            ("/a%zz", PathError::Percent),
            ("/a%", PathError::Percent),
            (&format!("/{}", "x".repeat(MAX_PATH_BYTES)), PathError::Length(MAX_PATH_BYTES + 1)),
        ] {
            assert_eq!(validate_uri_path(bad), Err(why), "{bad}");
        }
    }
}
