//! `keys` and `token`: creation of credentials.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::{Args, Subcommand, ValueEnum};

use super::cluster::{InCluster, block_on};
use super::{BAD_CONFIGURATION, DONE, Failed, load};
use crate::config::{self, RouterSettings};
use crate::control::secret_cache::SecretCache;
use crate::control::signing_keys;
use crate::model::duration::HumanDuration;
use crate::model::endpoint::{Auth, Endpoint, KeySource, SECRET_KEYS};
use crate::model::name::Name;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a primary and a secondary key for an endpoint, in files, and print them once
    #[command(after_help = "Example: inference-router keys generate --endpoint my-endpoint --folder keys\n\n\
        Writes keys/my-endpoint-primary.key and keys/my-endpoint-secondary.key, readable by their owner only.")]
    Generate {
        /// Name of the endpoint
        #[arg(long, value_name = "NAME", value_parser = name)]
        endpoint: Name,
        /// Folder for the files
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        folder: PathBuf,
    },
    /// Print the keys of an endpoint in a cluster
    #[command(after_help = "Example: inference-router keys show --endpoint my-endpoint -n team-a")]
    Show {
        /// Name of the endpoint
        #[arg(long, value_name = "NAME", value_parser = name)]
        endpoint: Name,
        #[command(flatten)]
        cluster: InCluster,
    },
    /// Replace one key of an endpoint, and print the new one once; the other key stays valid
    #[command(
        after_help = "Example: inference-router keys rotate --endpoint my-endpoint --key secondary --config router.yaml\n\
        In a cluster: inference-router keys rotate --endpoint my-endpoint --key secondary -n team-a\n\n\
        A router that runs takes the new key within a second. Change all callers to one key before you rotate the other."
    )]
    Rotate {
        /// Name of the endpoint
        #[arg(long, value_name = "NAME", value_parser = name)]
        endpoint: Name,
        /// The key to replace
        #[arg(long)]
        key: Which,
        /// The router's settings file; the endpoint's document says where its keys are
        #[arg(long, value_name = "FILE", conflicts_with = "folder", required_unless_present_any = ["folder", "namespace"])]
        config: Option<PathBuf>,
        /// Folder that `keys generate` has put the files into
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
        /// Namespace of an endpoint in a cluster
        #[arg(short, long, value_name = "NAMESPACE", conflicts_with_all = ["config", "folder"])]
        namespace: Option<String>,
    },
    /// Make a key that the router signs its own tokens with (`tokens.signingKeyFile`)
    #[command(after_help = "Example: inference-router keys signing --file signing.pem")]
    Signing {
        /// The file to write; it must not exist
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct TokenCommand {
    /// The router's settings file; without it, the endpoint is in a cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["namespace", "scoring_uri"])]
    config: Option<PathBuf>,
    #[command(flatten)]
    cluster: InCluster,
    /// Name of the endpoint that the token is for
    #[arg(long, value_name = "NAME", value_parser = name)]
    endpoint: Name,
    /// How long the token is valid, such as `30m`; default: `tokens.lifetime`
    #[arg(long, value_name = "TIME", requires = "config")]
    ttl: Option<HumanDuration>,
    /// Subject of the token: `sub`, and `IdentityData` of the access log
    #[arg(long, value_name = "NAME", default_value = "operator", requires = "config")]
    subject: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Which {
    Primary,
    Secondary,
}

impl Which {
    fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    fn file(self, folder: &Path, endpoint: &Name) -> PathBuf {
        folder.join(format!("{}-{}.key", endpoint.key(), self.word()))
    }
}

/// Stands for keys in environment variables. These are set where the router is started, and no command needs their
/// value.
const UNKNOWN_KEY: &str = "a-key-that-only-the-router-knows";

impl KeysCommand {
    pub(super) fn run(self) -> ExitCode {
        finish(match self {
            Self::Generate { endpoint, folder } => generate(&endpoint, &folder),
            Self::Show { endpoint, cluster } => show(&endpoint, &cluster),
            Self::Rotate { endpoint, key, namespace: Some(namespace), .. } => {
                rotate_secret(&endpoint, key, InCluster { namespace: Some(namespace), scoring_uri: None })
            }
            Self::Rotate { endpoint, key, config, folder, .. } => rotate(&endpoint, key, config.as_deref(), folder),
            Self::Signing { file } => make_signing_key(&file),
        })
    }
}

impl TokenCommand {
    pub(super) fn run(self) -> ExitCode {
        finish(self.issue())
    }

    fn issue(self) -> Result<(), Failed> {
        const LONGEST: Duration = Duration::from_secs(30 * 86_400);
        let Some(config) = &self.config else {
            let token = block_on(async { Ok(self.cluster.caller(&self.endpoint).await?.request_token().await?) });
            let token = token.map_err(|Failed(what, code)| {
                Failed(format!("{what}\nFor an endpoint in files, give the settings file: --config FILE"), code)
            })?;
            return say(&format!("{token:#}"));
        };
        let (settings, endpoint) = find(config, &self.endpoint)?;
        if !matches!(endpoint.auth, Auth::RouterToken(_)) {
            let mode = endpoint.auth.mode();
            let what = format!(
                "the endpoint {} has `authMode: {mode}`; only `aml_token` takes tokens of the router",
                endpoint.name
            );
            return Err(what.into());
        }
        let ttl = self.ttl.map(|ttl| ttl.0);
        if ttl.is_some_and(|ttl| ttl < Duration::from_secs(1) || ttl > LONGEST) {
            return Err("--ttl must be from 1s to 720h".to_owned().into());
        }
        let signing = signing_keys::read_signing_keys(&settings.tokens, &SecretCache::default())
            .map_err(|problem| Failed(problem.to_string(), BAD_CONFIGURATION))?;
        let signing = signing.ok_or_else(|| {
            let what = "tokens.signingKeyFile is not set; make a key with `inference-router keys signing --file FILE`";
            Failed(what.to_owned(), BAD_CONFIGURATION)
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let issued = signing.issue(endpoint.name.key(), &self.subject, now, ttl);
        let issued = issued.map_err(|error| format!("the token cannot be signed: {error}"))?;
        say(&format!("{:#}", issued.to_document()))
    }
}

fn generate(endpoint: &Name, folder: &Path) -> Result<(), Failed> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let keys = [Which::Primary, Which::Secondary].map(|which| (which, which.file(folder, endpoint), key()));
    if let Some((which, path, _)) = keys.iter().find(|(_, path, _)| path.exists()) {
        let how = format!("`keys rotate --endpoint {endpoint} --key {} --folder {}`", which.word(), folder.display());
        return Err(format!("{} exists; replace it with {how}", path.display()).into());
    }
    for (which, path, key) in &keys {
        write(path, key, false)?;
        say(&format!("{}: {key}", which.word()))?;
    }
    let [primary, secondary] = keys.map(|(_, path, _)| std::path::absolute(&path).unwrap_or(path));
    eprintln!(
        "They are not shown again. In the endpoint's document:\n  keys:\n    primary: {{file: {primary:?}}}\n    \
         secondary: {{file: {secondary:?}}}"
    );
    Ok(())
}

fn rotate(endpoint: &Name, which: Which, config: Option<&Path>, folder: Option<PathBuf>) -> Result<(), Failed> {
    let path = match config {
        Some(config) => {
            let (_, endpoint) = find(config, endpoint)?;
            file_of(&endpoint, which)?
        }
        None => which.file(&folder.unwrap_or_default(), endpoint),
    };
    if !path.exists() {
        return Err(format!("{} does not exist; make keys with `keys generate`", path.display()).into());
    }
    let key = key();
    write(&path, &key, true)?;
    say(&format!("{}: {key}", which.word()))
}

fn show(endpoint: &Name, cluster: &InCluster) -> Result<(), Failed> {
    let keys = block_on(async { Ok(cluster.caller(endpoint).await?.keys().await?) })?;
    say(&format!("{:#}", serde_json::json!(keys)))
}

fn rotate_secret(endpoint: &Name, which: Which, cluster: InCluster) -> Result<(), Failed> {
    let (key, entry) = (key(), SECRET_KEYS[which as usize]);
    block_on(async { Ok(cluster.caller(endpoint).await?.set_key(entry, &key).await?) })?;
    say(&format!("{}: {key}", which.word()))
}

/// Returns the file that holds a key of an endpoint.
fn file_of(endpoint: &Endpoint, which: Which) -> Result<PathBuf, Failed> {
    let sources = match &endpoint.auth {
        Auth::Key(sources) | Auth::RouterToken(sources) => sources.as_slice(),
        Auth::None | Auth::IssuerToken(_) => &[],
    };
    let (name, word) = (&endpoint.name, which.word());
    let elsewhere = match sources.get(which as usize) {
        Some(KeySource::File(path)) => return Ok(path.clone()),
        Some(KeySource::Env(variable)) => {
            format!("in the variable {variable}, which is set where the router is started")
        }
        Some(KeySource::Value(_)) => "in the document itself; change it there, or better move it to a file".to_owned(),
        Some(KeySource::Secret { name, .. }) => format!("in the Secret {name}; use --namespace"),
        None => "not there; add it to the document first".to_owned(),
    };
    Err(format!("the {word} key of {name} is {elsewhere}").into())
}

fn make_signing_key(file: &Path) -> Result<(), Failed> {
    let failed = || format!("{}: no key could be made", file.display());
    let pair = Ed25519KeyPair::generate().map_err(|_| failed())?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| failed())?;
    let text = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap_or_default()).collect();
    write(file, &format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", lines.join("\n")), false)?;
    Ok(())
}

/// Returns the settings, and the endpoint with that name with its paths resolved.
fn find(config: &Path, name: &Name) -> Result<(RouterSettings, Arc<Endpoint>), Failed> {
    let lines = |problems: Vec<crate::model::problem::Problem>| {
        Failed(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), BAD_CONFIGURATION)
    };
    let settings = config::load(config, std::env::vars()).map_err(|rejected| lines(rejected.problems))?;
    let loaded = load(settings.endpoint_files.clone(), Arc::new(|_| Some(UNKNOWN_KEY.to_owned())));
    match loaded.endpoints.into_iter().find(|endpoint| endpoint.spec.name == *name) {
        Some(endpoint) => Ok((settings, endpoint.spec)),
        None if loaded.problems.is_empty() => Err(format!("there is no endpoint {name} in endpoints.files").into()),
        None => Err(lines(loaded.problems)),
    }
}

/// Returns 256 random bits as letters, digits, `-` and `_`.
fn key() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// Writes a secret to a file that only its owner can read, and moves it into place, so that nobody sees a part of it.
fn write(path: &Path, secret: &str, replace: bool) -> Result<(), String> {
    // A link stays a link: a reader of the file that it names must see the new key.
    let path = &if replace {
        path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?
    } else {
        path.to_owned()
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        writeln!(file, "{secret}")?;
        if replace {
            // The new file gets the permissions of the old one: a router that cannot read it would keep the old key.
            let before = std::fs::metadata(path)?;
            std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()))?;
            file.as_file().set_permissions(before.permissions())?;
        }
        file.as_file().sync_all()?;
        let moved = if replace { file.persist(path) } else { file.persist_noclobber(path) };
        moved.map(drop).map_err(|error| error.error)
    });
    written.map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

pub(super) fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn say(line: &str) -> Result<(), Failed> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| format!("stdout cannot be written: {error}").into())
}

fn finish(result: Result<(), Failed>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(DONE),
        Err(Failed(what, code)) => {
            eprintln!("{what}");
            ExitCode::from(code)
        }
    }
}
