//! Requests of commands to the admin listener of a router.

use std::time::Duration;

use crate::control::cluster::endpoint_client::MAX_ADMIN_RESPONSE_BYTES;

/// How long a router may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Parses the address of an admin listener.
pub(super) fn url(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.map(|_| text.to_owned()).ok_or_else(|| "is no address such as http://127.0.0.1:9090".to_owned())
}

/// Returns the status and the body of an answer.
///
/// # Errors
///
/// When there is no answer.
pub(super) async fn fetch(url: &str) -> Result<(u16, String), String> {
    let client =
        reqwest::Client::builder().timeout(REQUEST_TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
    let sent = client.map_err(|error| unreachable(url, &error))?.get(url).send().await;
    let mut answer = sent.map_err(|error| unreachable(url, &error))?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| unreachable(url, &error))? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ADMIN_RESPONSE_BYTES {
            return Err(format!("{url} answers with more than a router would; does `--admin` say where one is?"));
        }
    }
    Ok((answer.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
}

/// Escapes characters that would move a terminal's cursor or change its colors.
pub(super) fn visible(text: &str) -> String {
    let of = |character: char| match character {
        '\n' => "\n".to_owned(),
        hidden if hidden.is_control() => hidden.escape_default().to_string(),
        seen => seen.to_string(),
    };
    text.chars().map(of).collect()
}

fn unreachable(url: &str, error: &reqwest::Error) -> String {
    let how = "is a router running there? `--admin` says where its admin listener is";
    format!("{url} cannot be read: {error}; {how}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_nothing_moves_the_cursor() {
        assert!(url("http://127.0.0.1:9090").is_ok() && url("https://router.example/").is_ok());
        for text in ["127.0.0.1:9090", "localhost:9090", "router", "", "file:///etc"] {
            assert!(url(text).is_err(), "{text}");
        }
        assert_eq!(visible("two\nlines, \u{1b}[31mred"), "two\nlines, \\u{1b}[31mred");
    }
}
