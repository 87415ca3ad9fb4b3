//! Keys and other credential files that endpoint documents name.

use super::{DocumentFile, DocumentFiles, file_stamp};
use crate::control::index::DesiredEndpoint;
use crate::control::{key_set_fetcher, small_file};
use crate::model::endpoint::{Auth, Issuer, KeySource};
use crate::model::problem::{Problem, field_path, item_path};
use crate::policy::access::{Access, KeyDigest};

/// The shortest key that is accepted from a file or a variable, in bytes.
const MIN_KEY_BYTES: usize = 16;

impl DocumentFiles {
    /// Resolves the keys of an endpoint and records the stamps of the files they come from.
    pub(super) fn resolve_access(&self, auth: &Auth, document: &mut DocumentFile) -> Result<Access, Vec<Problem>> {
        let sources = match auth {
            Auth::None => return Ok(Access::Open),
            Auth::IssuerToken(issuers) => {
                let problems = issuer_file_problems(issuers, document);
                return if problems.is_empty() { Ok(Access::IssuerTokens(issuers.clone())) } else { Err(problems) };
            }
            Auth::Key(sources) | Auth::RouterToken(sources) => sources,
        };
        let (mut digests, mut problems) = (Vec::new(), Vec::new());
        for (source, name) in sources.iter().zip(["primary", "secondary"]) {
            if let KeySource::File(path) = source {
                document.stamps.push((path.clone(), file_stamp(path)));
            }
            match self.read_key(source) {
                Ok(key) => digests.push(KeyDigest::digest_key(&key)),
                Err(what) => {
                    document.needs_retry |= matches!(source, KeySource::File(_));
                    problems.push(Problem::new(format!("spec.keys.{name}"), what));
                }
            }
        }
        match auth {
            _ if !problems.is_empty() => Err(problems),
            Auth::RouterToken(_) => Ok(Access::RouterTokens(digests)),
            _ => Ok(Access::Keys(digests)),
        }
    }

    /// Returns the last known good version of an endpoint with the keys of the current document, as far as they can be
    /// read. A key that was revoked must not stay valid because another part of the document is wrong.
    pub(super) fn with_current_keys(
        &self,
        mut previous: DesiredEndpoint,
        document: &mut DocumentFile,
    ) -> DesiredEndpoint {
        let (Auth::Key(sources) | Auth::RouterToken(sources)) = &previous.spec.auth else { return previous };
        let (Access::Keys(digests) | Access::RouterTokens(digests)) = &mut previous.access else { return previous };
        for (source, digest) in sources.iter().zip(digests) {
            if let KeySource::File(path) = source {
                document.stamps.push((path.clone(), file_stamp(path)));
            }
            if let Ok(key) = self.read_key(source) {
                *digest = KeyDigest::digest_key(&key);
            }
        }
        previous
    }

    fn read_key(&self, source: &KeySource) -> Result<String, String> {
        let (key, from) = match source {
            KeySource::Value(key) => (key.clone(), "the document".to_owned()),
            KeySource::Env(name) => match (self.env_lookup)(name) {
                Some(key) => (key, format!("the environment variable {name}")),
                None => {
                    return Err(format!(
                        "the environment variable {name} is not set; set it before starting the router"
                    ));
                }
            },
            KeySource::Secret { name, .. } => return Err(format!("the Secret {name} needs Kubernetes")),
            KeySource::File(path) => match small_file::read(path) {
                Ok(key) => (String::from_utf8_lossy(&key).into_owned(), format!("the file {}", path.display())),
                Err(error) => return Err(format!("the key file {} cannot be read: {error}", path.display())),
            },
        };
        let key = key.trim();
        if key.len() < MIN_KEY_BYTES {
            return Err(format!(
                "the key in {from} has {} characters; use at least {MIN_KEY_BYTES}, better 32, random ones",
                key.len()
            ));
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "the key in {from} has spaces or characters that no header can carry; use letters and digits"
            ));
        }
        Ok(key.to_owned())
    }
}

/// Returns problems of the files that belong to token issuers.
fn issuer_file_problems(issuers: &[Issuer], document: &mut DocumentFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, issuer) in issuers.iter().enumerate() {
        let files = issuer.key_set.ca_file.iter().chain(&issuer.key_set.bearer_token_file);
        document.stamps.extend(files.map(|path| (path.clone(), file_stamp(path))));
        let issuer_path = item_path("spec.jwt.issuers", index);
        let wrong = key_set_fetcher::check_issuer_files(&issuer.key_set).into_iter();
        problems.extend(wrong.map(|(name, what)| Problem::new(field_path(&issuer_path, name), what)));
    }
    document.needs_retry |= !problems.is_empty();
    problems
}
