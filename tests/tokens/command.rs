//! `keys` and `token` on the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use inference_router::policy::signing::TokenSigner;
use inference_router::policy::token::ParsedToken;

fn run(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inference-router")).current_dir(folder).args(words).output().unwrap()
}

fn stdout_of_success(folder: &Path, words: &[&str]) -> String {
    let output = run(folder, words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr_of_failure(folder: &Path, words: &[&str], code: i32) -> String {
    let output = run(folder, words);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn setup() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let document = "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {name: my-endpoint}\n\
        spec:\n  authMode: aml_token\n  keys: {primary: {file: ../keys/my-endpoint-primary.key}, secondary: {env: OTHER}}\n  \
        traffic: {blue: 100}\n  deployments:\n  - {name: blue, instances: [\"127.0.0.1:1\"]}\n";
    std::fs::create_dir(folder.path().join("endpoints")).unwrap();
    std::fs::write(folder.path().join("endpoints/a.yaml"), document).unwrap();
    std::fs::write(folder.path().join("router.yaml"), "tokens: {signingKeyFile: signing.pem}\n").unwrap();
    folder
}

#[test]
fn keys_are_made_shown_once_and_readable_by_their_owner_only() {
    let folder = setup();
    let folder = folder.path();
    let shown = stdout_of_success(folder, &["keys", "generate", "--endpoint", "My-Endpoint", "--folder", "keys"]);
    let keys: Vec<&str> = shown.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    assert_eq!(keys.len(), 2);
    assert!(keys[0] != keys[1] && keys.iter().all(|key| key.len() == 43), "{shown}");
    for (key, name) in keys.iter().zip(["primary", "secondary"]) {
        let path = folder.join(format!("keys/my-endpoint-{name}.key"));
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), *key);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let again = stderr_of_failure(folder, &["keys", "generate", "--endpoint", "my-endpoint", "--folder", "keys"], 1);
    assert!(again.contains("exists") && again.contains("keys rotate"), "{again}");
    let rotated = stdout_of_success(
        folder,
        &["keys", "rotate", "--endpoint", "my-endpoint", "--key", "secondary", "--folder", "keys"],
    );
    let now = |name: &str| std::fs::read_to_string(folder.join(format!("keys/my-endpoint-{name}.key"))).unwrap();
    assert_eq!(rotated.trim(), format!("secondary: {}", now("secondary").trim()));
    assert_ne!(now("secondary").trim(), keys[1]);
    assert_eq!(now("primary").trim(), keys[0], "the other key stays");
    assert_eq!(std::fs::read_dir(folder.join("keys")).unwrap().count(), 2, "nothing is left over");
    // A router of another user reads it by its mode; one that reads it through a link reads the file behind it.
    let file = folder.join("keys/my-endpoint-primary.key");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::rename(&file, folder.join("behind")).unwrap();
    std::os::unix::fs::symlink("../behind", &file).unwrap();
    stdout_of_success(folder, &["keys", "rotate", "--endpoint", "my-endpoint", "--key", "primary", "--folder", "keys"]);
    assert_ne!(std::fs::read_to_string(folder.join("behind")).unwrap().trim(), keys[0]);
    assert!(std::fs::symlink_metadata(&file).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(stderr_of_failure(folder, &["keys", "generate", "--endpoint", "../x"], 2).contains("--endpoint"));
}

#[test]
fn keys_are_rotated_where_the_document_says_they_are() {
    let folder = setup();
    let folder = folder.path();
    // The variable of the other key is set where the router is run, not here.
    let rotate = |key: &str| {
        Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .current_dir("/")
            .args(["keys", "rotate", "--endpoint", "my-endpoint", "--key", key, "--config"])
            .arg(folder.join("router.yaml"))
            .output()
            .unwrap()
    };
    stdout_of_success(folder, &["keys", "generate", "--endpoint", "my-endpoint", "--folder", "keys"]);
    let before = std::fs::read_to_string(folder.join("keys/my-endpoint-primary.key")).unwrap();
    let output = rotate("primary");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = std::fs::read_to_string(folder.join("keys/my-endpoint-primary.key")).unwrap();
    assert_ne!(before, after);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("primary: {after}"));
    let output = rotate("secondary");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the variable OTHER"));
}

#[test]
fn a_token_is_made_with_a_key_that_was_made() {
    let folder = setup();
    let folder = folder.path();
    stdout_of_success(folder, &["keys", "generate", "--endpoint", "my-endpoint", "--folder", "keys"]);
    std::fs::copy(folder.join("keys/my-endpoint-secondary.key"), folder.join("other")).unwrap();
    let document = std::fs::read_to_string(folder.join("endpoints/a.yaml")).unwrap();
    std::fs::write(folder.join("endpoints/a.yaml"), document.replace("{env: OTHER}", "{file: ../other}")).unwrap();
    let ask = ["token", "--config", "router.yaml", "--endpoint", "my-endpoint", "--ttl", "30m", "--subject", "me"];
    assert!(stderr_of_failure(folder, &ask, 78).contains("signing.pem"), "the key is missing");
    let checked = run(folder, &["check", "router.yaml"]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("tokens.signingKeyFile"));
    stdout_of_success(folder, &["keys", "signing", "--file", "signing.pem"]);
    assert_eq!(std::fs::metadata(folder.join("signing.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        stderr_of_failure(folder, &["keys", "signing", "--file", "signing.pem"], 1).contains("signing.pem"),
        "it is not replaced"
    );
    assert!(run(folder, &["check", "router.yaml"]).status.success());
    let issued: serde_json::Value = serde_json::from_str(&stdout_of_success(folder, &ask)).unwrap();
    let pem = std::fs::read(folder.join("signing.pem")).unwrap();
    let signing = TokenSigner::new("inference-router", std::time::Duration::from_secs(1), &pem, &[]).unwrap();
    let token = ParsedToken::parse(issued["accessToken"].as_str().unwrap()).unwrap();
    let claims = token.verify(signing.keys()).unwrap();
    assert_eq!(claims.subject(), "me");
    let expiry = issued["expiryTimeUtc"].as_u64().unwrap();
    assert_eq!(claims.authorize_endpoint("my-endpoint", expiry), Ok(()));
    assert!((1790..=1800).contains(&(expiry - crate::signers::unix_seconds())), "{expiry}");
    for (ttl, says) in [("0s", "--ttl"), ("721h", "--ttl")] {
        assert!(
            stderr_of_failure(
                folder,
                &["token", "--config", "router.yaml", "--endpoint", "my-endpoint", "--ttl", ttl],
                1
            )
            .contains(says)
        );
    }
    assert!(
        stderr_of_failure(folder, &["token", "--config", "router.yaml", "--endpoint", "nobody"], 1)
            .contains("no endpoint nobody")
    );
}

#[test]
fn an_endpoint_that_needs_tokens_needs_a_key_to_sign_them() {
    let folder = setup();
    let folder = folder.path();
    std::fs::write(folder.join("router.yaml"), "").unwrap();
    stdout_of_success(folder, &["keys", "generate", "--endpoint", "my-endpoint", "--folder", "keys"]);
    let output = Command::new(env!("CARGO_BIN_EXE_inference-router"))
        .args(["serve", "--config"])
        .arg(folder.join("router.yaml"))
        .env("OTHER", "0123456789abcdef0123456789abcdef")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(
        told.contains("tokens.signingKeyFile") && told.contains("my-endpoint") && told.contains("keys signing"),
        "{told}"
    );
}
