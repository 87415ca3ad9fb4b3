//! Parses a request path into the endpoint and the path on the model.

use crate::model::name;

/// A parsed request path. It borrows from the path.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct EndpointPath<'a> {
    /// The name of the endpoint, as the client wrote it.
    pub endpoint: &'a str,
    /// The path on the model.
    pub model_path: ModelPath<'a>,
}

/// The path on the model that a request asks for.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum ModelPath<'a> {
    /// `…/score`: the `scoringPath` of the deployment.
    Score,
    /// `…/swagger.json`: the `swaggerPath` of the deployment.
    Swagger,
    /// Any other path, which is passed on as it is. It starts with `/`.
    Path(&'a str),
}

/// Why a path names no endpoint.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Unidentified {
    /// The path does not have the form `/api/v1/endpoint/{endpoint}/…`.
    NotFound,
    /// The path has a `.` or `..` segment, plain or percent-encoded, which a model could read differently.
    DotSegment,
    /// The path has a `%` without two hexadecimal digits.
    Encoding,
}

/// The prefixes of scoring paths: the current one, and that of v1 clients.
const PATH_PREFIXES: [&str; 2] = ["/api/v1/endpoint/", "/api/v1/service/"];

/// Parses a request path without its query.
///
/// # Errors
///
/// [`Unidentified`] if the path has neither prefix, or is not safe to pass on.
pub fn parse_endpoint_path(path: &str) -> Result<EndpointPath<'_>, Unidentified> {
    let rest = PATH_PREFIXES.iter().find_map(|family| path.strip_prefix(family)).ok_or(Unidentified::NotFound)?;
    let (endpoint, sub) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let asked = match sub {
        "/score" => ModelPath::Score,
        "/swagger.json" => ModelPath::Swagger,
        "" => ModelPath::Path("/"),
        other => {
            check_path_safety(other)?;
            ModelPath::Path(other)
        }
    };
    Ok(EndpointPath { endpoint, model_path: asked })
}

/// Writes `name` in lower case to `buffer`, as a key for look-ups without an allocation. Returns `None` if it is too
/// long for any name.
pub fn lookup_key<'b>(name: &str, buffer: &'b mut [u8; *name::NAME_LENGTH.end()]) -> Option<&'b str> {
    let key = buffer.get_mut(..name.len())?;
    key.copy_from_slice(name.as_bytes());
    key.make_ascii_lowercase();
    str::from_utf8(key).ok()
}

/// Refuses paths that a model could read differently.
fn check_path_safety(path: &str) -> Result<(), Unidentified> {
    if !path.contains("/.") && !path.contains(['%', '\\']) {
        return Ok(());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            decode_hex_digits(bytes.next(), bytes.next()).ok_or(Unidentified::Encoding)?
        } else {
            byte
        });
    }
    // A backslash or an encoded slash separates segments for some servers, so it does here.
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    if segments.any(|segment| segment == b"." || segment == b"..") { Err(Unidentified::DotSegment) } else { Ok(()) }
}

/// Returns the byte that two hexadecimal digits stand for.
fn decode_hex_digits(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_name_the_same_endpoint() {
        for family in ["/api/v1/endpoint/my-model", "/api/v1/service/my-model"] {
            for (sub, asked) in [
                ("/score", ModelPath::Score),
                ("/swagger.json", ModelPath::Swagger),
                ("", ModelPath::Path("/")),
                ("/", ModelPath::Path("/")),
                ("/score/", ModelPath::Path("/score/")),
                ("/v1/chat/completions", ModelPath::Path("/v1/chat/completions")),
                ("/v2/models/m:predict", ModelPath::Path("/v2/models/m:predict")),
                ("/a.b/..c/.../d%2e", ModelPath::Path("/a.b/..c/.../d%2e")),
            ] {
                let path = format!("{family}{sub}");
                assert_eq!(
                    parse_endpoint_path(&path),
                    Ok(EndpointPath { endpoint: "my-model", model_path: asked }),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn other_paths_name_none() {
        for path in ["/", "", "/score", "/api/v1/endpoint", "/api/v2/endpoint/a/score", "api/v1/endpoint/a/score"] {
            assert_eq!(parse_endpoint_path(path), Err(Unidentified::NotFound), "{path}");
        }
    }

    #[test]
    fn dot_segments_are_refused_however_written() {
        for sub in [
            "/..",
            "/.",
            "/a/../b",
            "/a/./b",
            "/%2e%2e/b",
            "/a/%2E./b",
            "/a/.%2e",
            "/..\\b",
            "/a%2f..%2fb",
            "/a%5c../b",
            "/../other/score",
        ] {
            let path = format!("/api/v1/endpoint/abc{sub}");
            assert_eq!(parse_endpoint_path(&path), Err(Unidentified::DotSegment), "{path}");
        }
    }

    #[test]
    fn a_percent_sign_needs_two_digits() {
        for sub in ["/%", "/a%2", "/%zz", "/%2/x", "/%+1"] {
            let path = format!("/api/v1/endpoint/abc{sub}");
            assert_eq!(parse_endpoint_path(&path), Err(Unidentified::Encoding), "{path}");
        }
    }

    #[test]
    fn a_lookup_key_is_lower_case_and_bounded() {
        let mut buffer = [0; 32];
        assert_eq!(lookup_key("My-Model", &mut buffer), Some("my-model"));
        assert_eq!(lookup_key(&"x".repeat(33), &mut buffer), None);
    }
}
