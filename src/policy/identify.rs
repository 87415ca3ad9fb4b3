//! Which endpoint a request path names, and what it asks of the model.

use crate::model::name;

/// A scoring path, taken apart. Borrowed from the path.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Called<'a> {
    /// The endpoint's name as the client spelled it.
    pub endpoint: &'a str,
    /// What is asked of the model.
    pub asked: Asked<'a>,
}

/// What a request asks of the model.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Asked<'a> {
    /// `…/score`: the deployment's `scoringPath`.
    Score,
    /// `…/swagger.json`: the deployment's `swaggerPath`.
    Swagger,
    /// Anything else, passed on as it is; starts with `/`.
    Path(&'a str),
}

/// Why a path names no endpoint.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Unidentified {
    /// It is not of the form `/api/v1/endpoint/{endpoint}/…`.
    NotFound,
    /// It has a `.` or `..` segment, plain or percent-encoded: a model could read it as another path than we do.
    DotSegment,
    /// It has a `%` without two hexadecimal digits.
    Encoding,
}

/// The two families of paths: the current one and the one of v1 clients.
const FAMILIES: [&str; 2] = ["/api/v1/endpoint/", "/api/v1/service/"];

/// Takes a request path (no query) apart.
///
/// # Errors
/// [`Unidentified`] when the path is of neither family, or not safe to pass on.
pub fn identify(path: &str) -> Result<Called<'_>, Unidentified> {
    let rest = FAMILIES.iter().find_map(|family| path.strip_prefix(family)).ok_or(Unidentified::NotFound)?;
    let (endpoint, sub) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let asked = match sub {
        "/score" => Asked::Score,
        "/swagger.json" => Asked::Swagger,
        "" => Asked::Path("/"),
        other => {
            check(other)?;
            Asked::Path(other)
        }
    };
    Ok(Called { endpoint, asked })
}

/// `name` in lower case, in `buffer`: a look-up key without an allocation. `None` when it is too long for any name.
pub fn lookup_key<'b>(name: &str, buffer: &'b mut [u8; *name::LENGTH.end()]) -> Option<&'b str> {
    let key = buffer.get_mut(..name.len())?;
    key.copy_from_slice(name.as_bytes());
    key.make_ascii_lowercase();
    str::from_utf8(key).ok()
}

/// Refuses paths that a model could read as others than we do.
fn check(path: &str) -> Result<(), Unidentified> {
    if !path.contains("/.") && !path.contains(['%', '\\']) {
        return Ok(());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            decode(bytes.next(), bytes.next()).ok_or(Unidentified::Encoding)?
        } else {
            byte
        });
    }
    // A back-slash or an encoded slash separates segments for some servers, so it does here.
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    if segments.any(|segment| segment == b"." || segment == b"..") { Err(Unidentified::DotSegment) } else { Ok(()) }
}

/// The byte that two hexadecimal digits stand for.
fn decode(high: Option<u8>, low: Option<u8>) -> Option<u8> {
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
                ("/score", Asked::Score),
                ("/swagger.json", Asked::Swagger),
                ("", Asked::Path("/")),
                ("/", Asked::Path("/")),
                ("/score/", Asked::Path("/score/")),
                ("/v1/chat/completions", Asked::Path("/v1/chat/completions")),
                ("/v2/models/m:predict", Asked::Path("/v2/models/m:predict")),
                ("/a.b/..c/.../d%2e", Asked::Path("/a.b/..c/.../d%2e")),
            ] {
                let path = format!("{family}{sub}");
                assert_eq!(identify(&path), Ok(Called { endpoint: "my-model", asked }), "{path}");
            }
        }
    }

    #[test]
    fn other_paths_name_none() {
        for path in ["/", "", "/score", "/api/v1/endpoint", "/api/v2/endpoint/a/score", "api/v1/endpoint/a/score"] {
            assert_eq!(identify(path), Err(Unidentified::NotFound), "{path}");
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
            assert_eq!(identify(&path), Err(Unidentified::DotSegment), "{path}");
        }
    }

    #[test]
    fn a_percent_sign_needs_two_digits() {
        for sub in ["/%", "/a%2", "/%zz", "/%2/x", "/%+1"] {
            let path = format!("/api/v1/endpoint/abc{sub}");
            assert_eq!(identify(&path), Err(Unidentified::Encoding), "{path}");
        }
    }

    #[test]
    fn a_lookup_key_is_lower_case_and_bounded() {
        let mut buffer = [0; 32];
        assert_eq!(lookup_key("My-Model", &mut buffer), Some("my-model"));
        assert_eq!(lookup_key(&"x".repeat(33), &mut buffer), None);
    }
}
