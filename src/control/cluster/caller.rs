//! What somebody with a kubeconfig can do with an endpoint: call it, see and change its keys, get a token.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use kube::config::AuthInfo;
use kube::{Client, Config};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::objects::RawEndpoint;
use super::{MANAGER, secrets, watch, words};
use crate::model::crd::PLURAL;
use crate::model::endpoint::{Auth, KeySource, SECRET_KEYS};
use crate::model::name::Name;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::status::EndpointStatus;
use crate::model::validate::{self, Origin};

/// The Service of the routers' admin listeners, as `deploy/` names it.
const ADMIN_SERVICE: &str = "inference-router-admin";
/// What a router says of itself is shorter, in bytes.
pub const LONGEST_ANSWER: usize = 4 << 20;

/// Somebody, as their kubeconfig says, and an endpoint in a namespace.
pub struct Caller {
    client: Client,
    namespace: String,
    name: Name,
    /// What the kubeconfig has as their token.
    bearer: Option<String>,
    /// Who may call.
    auth: Auth,
    /// Where clients POST to.
    scoring_uri: String,
}

impl Caller {
    /// Looks the endpoint up. `namespace`: that of the kubeconfig, unless given. `scoring_uri`: that of the status, unless
    /// given.
    ///
    /// # Errors
    /// There is no cluster, no such endpoint, or it is not in order.
    pub async fn new(name: &Name, namespace: Option<&str>, scoring_uri: Option<&str>) -> Result<Self, String> {
        let config =
            Config::infer().await.map_err(|error| format!("no Kubernetes cluster: {error}; set KUBECONFIG"))?;
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let bearer = bearer(&config.auth_info);
        let client = Client::try_from(config).map_err(|error| format!("the cluster cannot be spoken to: {error}"))?;
        let api: Api<RawEndpoint> = watch::api(&client, &watch::resource(API_VERSION, KIND, PLURAL), &namespace);
        let raw = api
            .get(name.key())
            .await
            .map_err(|error| format!("the endpoint {name} in {namespace}: {}", words::of(&error)))?;
        let status: EndpointStatus =
            raw.status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
        let metadata = json!({"name": name.as_str(), "namespace": namespace});
        let document = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": raw.spec});
        let endpoint = validate::read(document, Origin::Cluster).map_err(|refused| {
            let words: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            format!("the endpoint {name} in {namespace} is not in order: {}", words.join("; "))
        })?;
        let scoring_uri = scoring_uri.map_or(status.scoring_uri, str::to_owned);
        Ok(Self { client, namespace, name: name.clone(), bearer, auth: endpoint.auth, scoring_uri })
    }

    /// The endpoint's keys, by their entries in its Secret.
    ///
    /// # Errors
    /// It has none, or they may not be read.
    pub async fn keys(&self) -> Result<BTreeMap<String, String>, String> {
        let secret = self.secret()?;
        let found = self.keys_of(secret).await?;
        let data = found.data.unwrap_or_default().into_iter();
        let keys = data.filter(|(entry, _)| SECRET_KEYS.contains(&entry.as_str()));
        Ok(keys.map(|(entry, value)| (entry, String::from_utf8_lossy(&value.0).trim().to_owned())).collect())
    }

    /// Replaces the key in this entry of the endpoint's Secret.
    ///
    /// # Errors
    /// It has none, or it may not be written.
    pub async fn set_key(&self, entry: &str, key: &str) -> Result<(), String> {
        let secret = self.secret()?;
        self.keys_of(secret).await?;
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"stringData": {entry: key}}));
        let patched = self.secrets().patch(secret, &params, &patch).await;
        patched.map(drop).map_err(|error| self.of_secret(secret, &error))
    }

    /// A token of the endpoint, as the router answers it.
    ///
    /// # Errors
    /// The endpoint takes none, the router does not answer, or refuses.
    pub async fn token(&self) -> Result<Value, String> {
        if !matches!(self.auth, Auth::RouterToken(_)) {
            let mode = self.auth.mode();
            return Err(format!("the endpoint {} has `authMode: {mode}`; only `aml_token` takes tokens", self.name));
        }
        let shown = match (&self.bearer, self.keys().await) {
            (_, Ok(keys)) if keys.contains_key(SECRET_KEYS[0]) => keys[SECRET_KEYS[0]].clone(),
            (Some(bearer), _) => bearer.clone(),
            (None, _) => {
                let how =
                    "use one with a token, as of `kubectl create token`, or a right to read the endpoint's Secret";
                return Err(format!("the kubeconfig has nothing to show for a token; {how}"));
            }
        };
        let uri = self.uri()?.strip_suffix("/score").unwrap_or(&self.scoring_uri).to_owned() + "/token";
        let answer = self.send(Method::POST, &uri, Some(&shown), None, Vec::new()).await?;
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        if !status.is_success() {
            return Err(format!("{uri} answers {status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|_| format!("{uri} answers something else than a token: {text}"))
    }

    /// Sends a request to be scored. Returns status and body.
    ///
    /// # Errors
    /// There is no credential to be had, or no answer.
    pub async fn invoke(&self, body: Vec<u8>, deployment: Option<&str>) -> Result<(u16, Vec<u8>), String> {
        let credential = match &self.auth {
            Auth::None => None,
            Auth::Key(_) => self.keys().await?.remove(SECRET_KEYS[0]),
            Auth::RouterToken(_) => self.token().await?["accessToken"].as_str().map(str::to_owned),
            Auth::IssuerToken(_) => {
                return Err(
                    "the endpoint takes tokens of its issuers only; get one there, and send it with curl".to_owned()
                );
            }
        };
        let answer = self.send(Method::POST, self.uri()?, credential.as_deref(), deployment, body).await?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| format!("the answer broke off: {error}"))?;
        Ok((status, body.to_vec()))
    }

    /// What a router says at `path` of its admin listener, of which the Service `inference-router-admin` in
    /// `router_namespace` says where it is: status and body.
    ///
    /// # Errors
    /// The API server does not pass it on.
    pub async fn ask_router(&self, router_namespace: &str, path: &str) -> Result<(u16, String), String> {
        let of = format!("/api/v1/namespaces/{router_namespace}/services/http:{ADMIN_SERVICE}:admin/proxy{path}");
        let request = http::Request::get(&of).body(kube::client::Body::empty()).map_err(|error| error.to_string())?;
        let answer = self.client.send(request).await.map_err(|error| words::of(&error))?;
        let status = answer.status().as_u16();
        let limited = http_body_util::Limited::new(answer.into_body(), LONGEST_ANSWER);
        let body = http_body_util::BodyExt::collect(limited).await;
        let body = body.map_err(|error| format!("{of}: the answer broke off: {error}"))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        credential: Option<&str>,
        deployment: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Response, String> {
        let client = reqwest::Client::builder().build().map_err(|error| error.to_string())?;
        let mut request = client.request(method, uri).header("content-type", "application/json").body(body);
        if let Some(credential) = credential {
            request = request.bearer_auth(credential);
        }
        if let Some(deployment) = deployment {
            request = request.header("azureml-model-deployment", deployment);
        }
        let how = "if it is only for inside of the cluster: `kubectl port-forward`, and `--scoring-uri`";
        request.send().await.map_err(|error| format!("{uri} cannot be reached: {error}; {how}"))
    }

    fn uri(&self) -> Result<&str, String> {
        if self.scoring_uri.is_empty() {
            let how = "set endpoints.kubernetes.service or scoringUrl in the router's settings (is it running?), or give `--scoring-uri`";
            return Err(format!("the status of {} says no scoring URI; {how}", self.name));
        }
        Ok(&self.scoring_uri)
    }

    fn secret(&self) -> Result<&str, String> {
        let (Auth::Key(sources) | Auth::RouterToken(sources)) = &self.auth else {
            return Err(format!("the endpoint {} has `authMode: {}`, and no keys", self.name, self.auth.mode()));
        };
        let name = sources.iter().find_map(|source| match source {
            KeySource::Secret { name, .. } => Some(name.as_str()),
            _ => None,
        });
        name.ok_or_else(|| format!("the endpoint {} has no keys", self.name))
    }

    /// The Secret, if it is one that the router takes keys from.
    async fn keys_of(&self, secret: &str) -> Result<Secret, String> {
        let found = self.secrets().get(secret).await.map_err(|error| self.of_secret(secret, &error))?;
        let (kind, wanted) = (found.type_.as_deref().unwrap_or("Opaque"), secrets::kind());
        if kind != wanted {
            let how = format!("make it anew with `type: {wanted}` (the type of a Secret cannot be changed)");
            return Err(format!(
                "the Secret {secret} in {} has the type {kind}, so the router does not look at it; {how}",
                self.namespace
            ));
        }
        Ok(found)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn of_secret(&self, secret: &str, error: &kube::Error) -> String {
        format!("the Secret {secret} in {}: {}", self.namespace, words::of(error))
    }
}

fn bearer(auth: &AuthInfo) -> Option<String> {
    let file = auth.token_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let text = auth.token.as_ref().map(|token| secrecy::ExposeSecret::expose_secret(token).to_owned());
    text.or(file).map(|token| token.trim().to_owned())
}
