//! Endpoint keys in Secrets: the type of the Secrets, their entries and the validation of keys.

use k8s_openapi::api::core::v1::Secret;

use crate::model::crd::API_GROUP;
use crate::model::endpoint::SECRET_KEYS;
use crate::policy::access::KeyDigest;

/// The shortest key accepted, in bytes.
const MIN_KEY_BYTES: usize = 16;

/// Returns the type of Secrets with endpoint keys.
pub(super) fn key_secret_type() -> String {
    format!("{API_GROUP}/endpoint-keys")
}

/// The digests of the keys in a Secret, or what is wrong with it. The keys themselves are not kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EndpointKeyDigests(Result<Vec<KeyDigest>, String>);

impl EndpointKeyDigests {
    /// Reads and validates the keys in a Secret.
    pub(super) fn from_secret(secret: &Secret) -> Self {
        let mut digests = Vec::new();
        for (index, entry) in SECRET_KEYS.into_iter().enumerate() {
            let value = secret.data.as_ref().and_then(|data| data.get(entry));
            match value.map(|bytes| key_digest(entry, &bytes.0)) {
                Some(Ok(digest)) => digests.push(digest),
                Some(Err(what)) => return Self(Err(what)),
                None if index == 0 => return Self(Err(format!("has no entry `{entry}`; add one"))),
                None => {}
            }
        }
        Self(Ok(digests))
    }

    /// Returns the digests of the keys, the primary key first.
    ///
    /// # Errors
    /// Returns what is wrong if an entry is missing, too short, or cannot be sent in a header.
    pub(super) fn digests(&self) -> Result<&[KeyDigest], &str> {
        self.0.as_deref().map_err(String::as_str)
    }
}

/// Validates a key and returns its digest. An error message never contains the key.
fn key_digest(entry: &str, bytes: &[u8]) -> Result<KeyDigest, String> {
    // `kubectl create secret --from-file` keeps the newline at the end of the file.
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.len() < MIN_KEY_BYTES {
        let how = "make one with `inference-router keys generate`";
        return Err(format!(
            "has a key of {} characters in `{entry}`, and {MIN_KEY_BYTES} is the least; {how}",
            text.len()
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("has spaces or characters in `{entry}` that no header can carry; use letters and digits"));
    }
    Ok(KeyDigest::digest_key(text))
}
