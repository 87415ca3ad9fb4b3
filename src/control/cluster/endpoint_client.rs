//! A client of one endpoint for the CLI, which acts with the rights of a kubeconfig: it calls the endpoint, reads and
//! replaces its keys, and gets tokens.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use kube::config::AuthInfo;
use kube::{Client, Config};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::objects::RawEndpointObject;
use super::{FIELD_MANAGER, error_text, key_secrets, watch};
use crate::model::crd::PLURAL_NAME;
use crate::model::endpoint::{Auth, KeySource, SECRET_KEYS};
use crate::model::endpoint_status::EndpointStatus;
use crate::model::name::Name;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::validate::{self, DocumentOrigin};

/// The name of the Service of the routers' admin listeners, as in `deploy/`.
const ADMIN_SERVICE: &str = "inference-router-admin";
/// The largest accepted response of an admin listener, in bytes.
pub const MAX_ADMIN_RESPONSE_BYTES: usize = 4 << 20;

/// A client of one endpoint, with the identity of a kubeconfig.
pub struct EndpointClient {
    client: Client,
    namespace: String,
    name: Name,
    /// The bearer token in the kubeconfig, if it has one.
    kubeconfig_token: Option<String>,
    /// The authentication mode of the endpoint.
    auth: Auth,
    /// The URI for scoring requests; empty if it is not known.
    scoring_uri: String,
}

impl EndpointClient {
    /// Looks up the endpoint. The default of `namespace` is that of the kubeconfig; the default of `scoring_uri` is
    /// that of the endpoint's status.
    ///
    /// # Errors
    /// Fails if there is no cluster or no such endpoint, or if its document is invalid.
    pub async fn new(name: &Name, namespace: Option<&str>, scoring_uri: Option<&str>) -> Result<Self, String> {
        let config =
            Config::infer().await.map_err(|error| format!("no Kubernetes cluster: {error}; set KUBECONFIG"))?;
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let token = token_from_kubeconfig(&config.auth_info);
        let client = Client::try_from(config).map_err(|error| format!("the cluster cannot be spoken to: {error}"))?;
        let api: Api<RawEndpointObject> =
            watch::api_in_scope(&client, &watch::api_resource(API_VERSION, KIND, PLURAL_NAME), &namespace);
        let raw = api
            .get(name.key())
            .await
            .map_err(|error| format!("the endpoint {name} in {namespace}: {}", error_text::describe_error(&error)))?;
        let status: EndpointStatus =
            raw.status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
        let metadata = json!({"name": name.as_str(), "namespace": namespace});
        let document = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": raw.spec});
        let endpoint = validate::decode_and_validate(document, DocumentOrigin::Cluster).map_err(|refused| {
            let problems: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            format!("the endpoint {name} in {namespace} is not in order: {}", problems.join("; "))
        })?;
        let scoring_uri = scoring_uri.map_or(status.scoring_uri, str::to_owned);
        Ok(Self { client, namespace, name: name.clone(), kubeconfig_token: token, auth: endpoint.auth, scoring_uri })
    }

    /// Returns the keys of the endpoint by their entries in its Secret.
    ///
    /// # Errors
    /// Fails if the endpoint has no keys, or if the user may not read them.
    pub async fn keys(&self) -> Result<BTreeMap<String, String>, String> {
        let secret = self.secret_name()?;
        let found = self.get_key_secret(secret).await?;
        let data = found.data.unwrap_or_default().into_iter();
        let keys = data.filter(|(entry, _)| SECRET_KEYS.contains(&entry.as_str()));
        Ok(keys.map(|(entry, value)| (entry, String::from_utf8_lossy(&value.0).trim().to_owned())).collect())
    }

    /// Replaces the key in one entry of the endpoint's Secret.
    ///
    /// # Errors
    /// Fails if the endpoint has no keys, or if the user may not write the Secret.
    pub async fn set_key(&self, entry: &str, key: &str) -> Result<(), String> {
        let secret = self.secret_name()?;
        self.get_key_secret(secret).await?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"stringData": {entry: key}}));
        let patched = self.secrets_api().patch(secret, &params, &patch).await;
        patched.map(drop).map_err(|error| self.secret_error(secret, &error))
    }

    /// Requests a token of the endpoint. Returns the response of the router.
    ///
    /// # Errors
    /// Fails if the endpoint takes no tokens, or if the router does not respond or refuses.
    pub async fn request_token(&self) -> Result<Value, String> {
        if !matches!(self.auth, Auth::RouterToken(_)) {
            let mode = self.auth.mode();
            return Err(format!("the endpoint {} has `authMode: {mode}`; only `aml_token` takes tokens", self.name));
        }
        let credential = match (&self.kubeconfig_token, self.keys().await) {
            (_, Ok(keys)) if keys.contains_key(SECRET_KEYS[0]) => keys[SECRET_KEYS[0]].clone(),
            (Some(token), _) => token.clone(),
            (None, _) => {
                let how =
                    "use one with a token, as of `kubectl create token`, or a right to read the endpoint's Secret";
                return Err(format!("the kubeconfig has nothing to show for a token; {how}"));
            }
        };
        let uri =
            self.required_scoring_uri()?.strip_suffix("/score").unwrap_or(&self.scoring_uri).to_owned() + "/token";
        let answer = self.send_request(Method::POST, &uri, Some(&credential), None, Vec::new()).await?;
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        if !status.is_success() {
            return Err(format!("{uri} answers {status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|_| format!("{uri} answers something else than a token: {text}"))
    }

    /// Sends a scoring request. Returns status and body of the response.
    ///
    /// # Errors
    /// Fails if no credential is available, or if there is no response.
    pub async fn invoke(&self, body: Vec<u8>, deployment: Option<&str>) -> Result<(u16, Vec<u8>), String> {
        let credential = match &self.auth {
            Auth::None => None,
            Auth::Key(_) => self.keys().await?.remove(SECRET_KEYS[0]),
            Auth::RouterToken(_) => self.request_token().await?["accessToken"].as_str().map(str::to_owned),
            Auth::IssuerToken(_) => {
                return Err(
                    "the endpoint takes tokens of its issuers only; get one there, and send it with curl".to_owned()
                );
            }
        };
        let answer = self
            .send_request(Method::POST, self.required_scoring_uri()?, credential.as_deref(), deployment, body)
            .await?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| format!("the answer broke off: {error}"))?;
        Ok((status, body.to_vec()))
    }

    /// Requests `path` of a router's admin listener through the API server's proxy and the Service
    /// `inference-router-admin` in `router_namespace`. Returns status and body of the response.
    ///
    /// # Errors
    /// Fails if the API server does not forward the request, or if the response is truncated or too large.
    pub async fn get_from_admin(&self, router_namespace: &str, path: &str) -> Result<(u16, String), String> {
        let proxy_path =
            format!("/api/v1/namespaces/{router_namespace}/services/http:{ADMIN_SERVICE}:admin/proxy{path}");
        let request =
            http::Request::get(&proxy_path).body(kube::client::Body::empty()).map_err(|error| error.to_string())?;
        let answer = self.client.send(request).await.map_err(|error| error_text::describe_error(&error))?;
        let status = answer.status().as_u16();
        let limited = http_body_util::Limited::new(answer.into_body(), MAX_ADMIN_RESPONSE_BYTES);
        let body = http_body_util::BodyExt::collect(limited).await;
        let body = body.map_err(|error| format!("{proxy_path}: the answer broke off: {error}"))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn send_request(
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

    fn required_scoring_uri(&self) -> Result<&str, String> {
        if self.scoring_uri.is_empty() {
            let how = "set endpoints.kubernetes.service or scoringUrl in the router's settings (is it running?), or give `--scoring-uri`";
            return Err(format!("the status of {} says no scoring URI; {how}", self.name));
        }
        Ok(&self.scoring_uri)
    }

    fn secret_name(&self) -> Result<&str, String> {
        let (Auth::Key(sources) | Auth::RouterToken(sources)) = &self.auth else {
            return Err(format!("the endpoint {} has `authMode: {}`, and no keys", self.name, self.auth.mode()));
        };
        let name = sources.iter().find_map(|source| match source {
            KeySource::Secret { name, .. } => Some(name.as_str()),
            _ => None,
        });
        name.ok_or_else(|| format!("the endpoint {} has no keys", self.name))
    }

    /// Returns the Secret, if its type is the one from which the router takes keys.
    async fn get_key_secret(&self, secret: &str) -> Result<Secret, String> {
        let found = self.secrets_api().get(secret).await.map_err(|error| self.secret_error(secret, &error))?;
        let (kind, wanted) = (found.type_.as_deref().unwrap_or("Opaque"), key_secrets::key_secret_type());
        if kind != wanted {
            let how = format!("make it anew with `type: {wanted}` (the type of a Secret cannot be changed)");
            return Err(format!(
                "the Secret {secret} in {} has the type {kind}, so the router does not look at it; {how}",
                self.namespace
            ));
        }
        Ok(found)
    }

    fn secrets_api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn secret_error(&self, secret: &str, error: &kube::Error) -> String {
        format!("the Secret {secret} in {}: {}", self.namespace, error_text::describe_error(error))
    }
}

fn token_from_kubeconfig(auth: &AuthInfo) -> Option<String> {
    let file = auth.token_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let text = auth.token.as_ref().map(|token| secrecy::ExposeSecret::expose_secret(token).to_owned());
    text.or(file).map(|token| token.trim().to_owned())
}
