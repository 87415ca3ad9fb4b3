//! Who may call: keys and other files that endpoint documents name, read and noted.

use super::{Document, Files, stamp};
use crate::control::index::Desired;
use crate::control::{issuers, small_file};
use crate::model::endpoint::{Auth, Issuer, KeySource};
use crate::model::problem::{Problem, field, item};
use crate::policy::access::{Access, KeyDigest};

/// The shortest key accepted from a file or a variable, in bytes.
const SHORTEST_KEY: usize = 16;

impl Files {
    /// Resolves an endpoint's keys, and notes the files they come from.
    pub(super) fn access(&self, auth: &Auth, document: &mut Document) -> Result<Access, Vec<Problem>> {
        let sources = match auth {
            Auth::None => return Ok(Access::Open),
            Auth::IssuerToken(issuers) => {
                let problems = issuer_files(issuers, document);
                return if problems.is_empty() { Ok(Access::IssuerTokens(issuers.clone())) } else { Err(problems) };
            }
            Auth::Key(sources) | Auth::RouterToken(sources) => sources,
        };
        let (mut digests, mut problems) = (Vec::new(), Vec::new());
        for (source, name) in sources.iter().zip(["primary", "secondary"]) {
            if let KeySource::File(path) = source {
                document.stamps.push((path.clone(), stamp(path)));
            }
            match self.key(source) {
                Ok(key) => digests.push(KeyDigest::of(&key)),
                Err(what) => {
                    document.again |= matches!(source, KeySource::File(_));
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

    /// An endpoint whose document is broken, as it was, but for its keys: each that can be had is the one of now. A key that
    /// was given away must not stay good because something else is wrong.
    pub(super) fn with_keys_of_now(&self, mut kept: Desired, document: &mut Document) -> Desired {
        let (Auth::Key(sources) | Auth::RouterToken(sources)) = &kept.spec.auth else { return kept };
        let (Access::Keys(digests) | Access::RouterTokens(digests)) = &mut kept.access else { return kept };
        for (source, digest) in sources.iter().zip(digests) {
            if let KeySource::File(path) = source {
                document.stamps.push((path.clone(), stamp(path)));
            }
            if let Ok(key) = self.key(source) {
                *digest = KeyDigest::of(&key);
            }
        }
        kept
    }

    fn key(&self, source: &KeySource) -> Result<String, String> {
        let (key, from) = match source {
            KeySource::Value(key) => (key.clone(), "the document".to_owned()),
            KeySource::Env(name) => match (self.environment)(name) {
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
        if key.len() < SHORTEST_KEY {
            return Err(format!(
                "the key in {from} has {} characters; use at least {SHORTEST_KEY}, better 32, random ones",
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

/// What is wrong with the files that go with issuers.
fn issuer_files(issuers: &[Issuer], document: &mut Document) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, issuer) in issuers.iter().enumerate() {
        let files = issuer.keys.ca_file.iter().chain(&issuer.keys.bearer_token_file);
        document.stamps.extend(files.map(|path| (path.clone(), stamp(path))));
        let at = item("spec.jwt.issuers", index);
        let wrong = issuers::check(&issuer.keys).into_iter();
        problems.extend(wrong.map(|(name, what)| Problem::new(field(&at, name), what)));
    }
    document.again |= !problems.is_empty();
    problems
}
