//! Keys of endpoints in Secrets.

use k8s_openapi::api::core::v1::Secret;

use crate::model::crd::GROUP;
use crate::model::endpoint::SECRET_KEYS;
use crate::policy::access::KeyDigest;

/// The shortest key accepted, in bytes.
const SHORTEST_KEY: usize = 16;

/// The type of Secrets with keys.
pub(super) fn kind() -> String {
    format!("{GROUP}/endpoint-keys")
}

/// A Secret with keys; the keys themselves are not kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Keys(Result<Vec<KeyDigest>, String>);

impl Keys {
    /// What is in a Secret.
    pub(super) fn of(secret: &Secret) -> Self {
        let mut digests = Vec::new();
        for (index, entry) in SECRET_KEYS.into_iter().enumerate() {
            let value = secret.data.as_ref().and_then(|data| data.get(entry));
            match value.map(|bytes| key(entry, &bytes.0)) {
                Some(Ok(digest)) => digests.push(digest),
                Some(Err(what)) => return Self(Err(what)),
                None if index == 0 => return Self(Err(format!("has no entry `{entry}`; add one"))),
                None => {}
            }
        }
        Self(Ok(digests))
    }

    /// Digests of the keys, the primary one first; or what is wrong with them.
    ///
    /// # Errors
    /// An entry is missing, too short, or cannot be sent in a header.
    pub(super) fn digests(&self) -> Result<&[KeyDigest], &str> {
        self.0.as_deref().map_err(String::as_str)
    }
}

/// The key itself is never part of the message.
fn key(entry: &str, bytes: &[u8]) -> Result<KeyDigest, String> {
    // `kubectl create secret --from-file` keeps the line's end.
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.len() < SHORTEST_KEY {
        let how = "make one with `inference-router keys generate`";
        return Err(format!(
            "has a key of {} characters in `{entry}`, and {SHORTEST_KEY} is the least; {how}",
            text.len()
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("has spaces or characters in `{entry}` that no header can carry; use letters and digits"));
    }
    Ok(KeyDigest::of(text))
}
