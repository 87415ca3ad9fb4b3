//! `demo`: the router with sample models on one machine, without a file.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{BAD_CONFIGURATION, build, fail, report, run, start_log};
use crate::app::{App, EndpointSource};
use crate::config::{LogFormat, LogLevel, LogSettings, RouterSettings};
use crate::control::documents;
use crate::control::index::DesiredEndpoint;
use crate::model::endpoint::{Auth, Endpoint, KeySource};
use crate::model::router_settings::ShutdownSettings;
use crate::policy::access::{Access, KeyDigest};

mod fleet;

/// The endpoint document of the quickstart, so that the demo and the files are the same.
const DOCUMENT: &str = include_str!("../../config/quickstart/my-endpoint.yaml");
/// The sample request of the model.
const REQUEST: &str = r#"{"data": [[1,2,3,4,5,6,7,8,9,10], [10,9,8,7,6,5,4,3,2,1]]}"#;

#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// Port of the scoring listener; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port of the admin listener; 0 takes a free one
    #[arg(long, default_value_t = 9090)]
    admin_port: u16,
    /// Number of routers that act as one; the others take free ports, and nothing scales with more than one
    #[arg(long, default_value_t = NonZeroU8::MIN)]
    routers: NonZeroU8,
}

impl DemoOptions {
    pub(super) fn run(self) -> ExitCode {
        let documents::ParsedDocuments { endpoints, problems, .. } = documents::parse(DOCUMENT, "demo");
        let Some((endpoint, key)) = endpoints.into_iter().next().and_then(|endpoint| {
            let key = key(&endpoint)?;
            Some((endpoint, key))
        }) else {
            return report(&problems, BAD_CONFIGURATION);
        };
        let settings = RouterSettings {
            scoring: SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port)),
            // No load balancer routes to the demo, so nothing has to notice that it stops.
            shutdown: ShutdownSettings { unready_delay: Duration::ZERO, drain_timeout: Duration::from_secs(10) },
            log: LogSettings { level: LogLevel::Info, format: LogFormat::Text, access: false },
            ..RouterSettings::default()
        };
        start_log(&settings.log);
        if self.routers > NonZeroU8::MIN {
            return several(&settings, endpoint, &key, self.routers).unwrap_or_else(|error| fail(&error));
        }
        let name = endpoint.name.to_string();
        match build(settings, EndpointSource::Fixed(vec![desired(endpoint, &key)])) {
            Ok(mut app) => {
                introduce(&mut app, &name, &key);
                run(app)
            }
            Err(code) => code,
        }
    }
}

fn desired(endpoint: Endpoint, key: &str) -> DesiredEndpoint {
    let access = Access::Keys(vec![KeyDigest::digest_key(key)]);
    DesiredEndpoint { spec: Arc::new(endpoint), access, connectors: Vec::new() }
}

/// Runs several routers in front of the same models.
fn several(
    settings: &RouterSettings,
    mut endpoint: Endpoint,
    key: &str,
    count: NonZeroU8,
) -> std::io::Result<ExitCode> {
    let (folder, _models) = (tempfile::tempdir()?, fleet::models(&mut endpoint)?);
    let mut apps = Vec::new();
    for number in 0..count.get() {
        let mut own = RouterSettings { fleet: Some(fleet::member(folder.path())?), ..settings.clone() };
        if number > 0 {
            own.scoring.set_port(0);
            own.admin.set_port(0);
        }
        match build(own, EndpointSource::Fixed(vec![desired(endpoint.clone(), key)])) {
            Ok(app) => apps.push(app),
            Err(code) => return Ok(code),
        }
    }
    let mut text = format!("\nThe demo runs: {count} routers as one, in front of the same models. Try each:\n\n");
    for app in &apps {
        let (scoring, admin, name) = (app.scoring_address()?, app.admin_address()?, &endpoint.name);
        text.push_str(&format!(
            "curl -s http://{scoring}/api/v1/endpoint/{name}/score -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{REQUEST}'\n\
             # who coordinates, who is there: `fleet`\n\
             curl -s http://{admin}/api/endpoints\n\n"
        ));
    }
    text.push_str("Ctrl-C stops everything.\n");
    let mut first = apps.remove(0);
    first.on_ready(move || println!("{text}"));
    Ok(fleet::run(first, apps))
}

/// Returns the primary key, which the document contains.
fn key(endpoint: &Endpoint) -> Option<String> {
    match &endpoint.auth {
        Auth::Key(sources) | Auth::RouterToken(sources) => sources.iter().find_map(|source| match source {
            KeySource::Value(key) => Some(key.clone()),
            _ => None,
        }),
        Auth::None | Auth::IssuerToken(_) => None,
    }
}

/// Prints commands to try, once they will work.
fn introduce(app: &mut App, name: &str, key: &str) {
    let (Ok(scoring), Ok(admin)) = (app.scoring_address(), app.admin_address()) else { return };
    let program = std::env::args().next().unwrap_or_else(|| "inference-router".to_owned());
    let text = format!(
        "\nThe demo runs: endpoint {name}, three deployments: blue (90 %, one to four replicas), green (10 %, two replicas),\n\
         shadow (copies of 20 %, another model). Try:\n\n\
         curl -s http://{scoring}/api/v1/endpoint/{name}/score -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{REQUEST}'\n\n\
         # the green deployment, whatever its weight, with the response's headers\n\
         curl -si http://{scoring}/api/v1/endpoint/{name}/score -H 'Authorization: Bearer {key}' -H 'azureml-model-deployment: green' -d '{REQUEST}'\n\n\
         # without a key: a problem document says what is missing\n\
         curl -s http://{scoring}/api/v1/endpoint/{name}/score -d '{REQUEST}'\n\n\
         # the model's own interface, the router's state, its metrics\n\
         curl -s http://{scoring}/api/v1/endpoint/{name}/swagger.json -H 'Authorization: Bearer {key}'\n\
         curl -s http://{admin}/api/endpoints\n\
         curl -s http://{admin}/metrics\n\n\
         # more at once than one replica of blue can take: it gets up to four, and a minute later one again\n\
         seq 2000 | xargs -P 12 -I@ curl -s -o /dev/null http://{scoring}/api/v1/endpoint/{name}/score -H 'Authorization: Bearer {key}' -d '{REQUEST}'\n\n\
         # is the shadow as good as what is live? Where its answers differ, and how sure that is\n\
         {program} compare --endpoint {name} --admin http://{admin}\n\n\
         Ctrl-C stops everything.\n"
    );
    app.on_ready(move || println!("{text}"));
}
