//! Handles one request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::store::{ApiFailure, KINDS, Resource, Store, api_version, kind_of, merge, not_found, resource};
use super::watches;

pub type Body = BoxBody<Bytes, Infallible>;

/// Where a request goes: `/apis/apps/v1/namespaces/a/deployments/b/scale`.
#[derive(Debug)]
pub struct ResourcePath {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

pub async fn handle_request(store: Arc<Store>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let fault = store.record_request(request.method().as_str(), &path);
    let latency = store.latency();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    if let Some(code) = fault {
        return Ok(failure(&ApiFailure { code, reason: "InternalError", message: "as the test wants it".to_owned() }));
    }
    Ok(route(&store, request).await.unwrap_or_else(|error| failure(&error)))
}

/// Passes a request on to where Services lead.
async fn proxy_to_service(store: &Store, service: &str, path: &str) -> Result<Response<Body>, ApiFailure> {
    let Some(authority) = store.service_authority() else {
        let message = format!("services \"{service}\" not found");
        return Err(ApiFailure { code: 404, reason: "NotFound", message });
    };
    let answer = reqwest::get(format!("http://{authority}/{path}")).await.unwrap();
    let status = answer.status().as_u16();
    Ok(text_answer(status, answer.text().await.unwrap()))
}

async fn route(store: &Arc<Store>, request: Request<Incoming>) -> Result<Response<Body>, ApiFailure> {
    let path = request.uri().path().to_owned();
    let query: HashMap<String, String> = query(request.uri().query().unwrap_or_default());
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    let rest = match steps.as_slice() {
        ["version"] => return Ok(json_answer(200, &json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0"}))),
        ["api", "v1"] => return Ok(json_answer(200, &discovery("", "v1"))),
        ["apis", group, version] => return Ok(json_answer(200, &discovery(group, version))),
        ["api", "v1", "namespaces", _, "services", service, "proxy", rest @ ..] => {
            return proxy_to_service(store, service, &rest.join("/")).await;
        }
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(ApiFailure { code: 404, reason: "NotFound", message: format!("no such page: {path}") }),
    };
    if let ("authentication.k8s.io" | "authorization.k8s.io", _, [plural]) = rest {
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        return Ok(json_answer(201, &review(store, plural, body)));
    }
    let place = place(rest)?;
    let method = request.method().clone();
    let is_patch = request.headers().get("content-type").cloned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let of = &place.resource;
    let at = (place.namespace.as_str(), place.name.as_str(), place.subresource.as_str());
    match (method, place.name.as_str()) {
        (Method::GET, "") if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => {
            watches::watch_response(store, place, &query)
        }
        (Method::GET, "") => Ok(text_answer(200, list(store, &place, &query))),
        (Method::GET, _) if place.subresource == "scale" => Ok(json_answer(200, &scale(&*store.get(of, at.0, at.1)?))),
        (Method::GET, _) => Ok(json_answer(200, &*store.get(of, at.0, at.1)?)),
        (Method::POST, "") => {
            let namespace = place.namespace.as_str();
            Ok(json_answer(201, &*store.create(of, namespace, body)?))
        }
        (Method::PUT, _) => {
            let changed = store.update(of, at, |object| {
                *object = body;
                Ok(())
            })?;
            Ok(json_answer(200, &changed))
        }
        (Method::PATCH, _) => {
            let kind = is_patch.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
            patch(store, &place, &kind, &query, body)
        }
        (Method::DELETE, _) => Ok(json_answer(200, &*store.delete(of, at.0, at.1)?)),
        (method, _) => {
            Err(ApiFailure { code: 405, reason: "MethodNotAllowed", message: format!("{method} of {path}") })
        }
    }
}

fn review(store: &Store, plural: &str, mut body: Value) -> Value {
    body["status"] = match plural {
        "tokenreviews" => match store.user_of_token(body["spec"]["token"].as_str().unwrap_or_default()) {
            Some(user) => {
                json!({"authenticated": true, "user": {"username": user, "groups": ["system:authenticated"]}})
            }
            None => json!({"authenticated": false, "error": "unknown token"}),
        },
        _ => json!({"allowed": store.is_allowed(&body["spec"])}),
    };
    body
}

fn patch(
    store: &Store,
    place: &ResourcePath,
    kind: &str,
    query: &HashMap<String, String>,
    body: Value,
) -> Result<Response<Body>, ApiFailure> {
    let of = &place.resource;
    let at = (place.namespace.as_str(), place.name.as_str(), place.subresource.as_str());
    let is_apply = kind.starts_with("application/apply-patch");
    if is_apply && !query.contains_key("fieldManager") {
        return Err(ApiFailure { code: 400, reason: "BadRequest", message: "fieldManager is required".to_owned() });
    }
    if kind.starts_with("application/strategic-merge-patch") && of.group == "inference-router.dev" {
        return Err(ApiFailure { code: 415, reason: "UnsupportedMediaType", message: kind.to_owned() });
    }
    if place.subresource == "scale" {
        let replicas = body["spec"]["replicas"].clone();
        let changed = store.update(of, (at.0, at.1, ""), |object| {
            object["spec"]["replicas"] = replicas;
            Ok(())
        })?;
        return Ok(json_answer(200, &scale(&changed)));
    }
    if is_apply && place.subresource.is_empty() && store.get(of, at.0, at.1).is_err() {
        return Ok(json_answer(201, &*store.create(of, at.0, body)?));
    }
    let changed = store.update(of, at, |object| {
        match (is_apply, place.subresource.as_str()) {
            // What was applied before and is not any more goes.
            (true, "status") => object["status"] = body["status"].clone(),
            (true, _) => object["spec"] = body["spec"].clone(),
            (false, _) => merge(object, &body),
        }
        encode_string_data(object);
        Ok(())
    })?;
    Ok(json_answer(200, &changed))
}

/// `stringData` of a Secret becomes `data`.
fn encode_string_data(object: &mut Value) {
    use base64::Engine;
    let Some(Value::Object(texts)) = object.as_object_mut().and_then(|map| map.remove("stringData")) else { return };
    for (name, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        object["data"][name] = json!(encoded);
    }
}

fn place((group, version, rest): (&str, &str, &[&str])) -> Result<ResourcePath, ApiFailure> {
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => ("", "", ""),
    };
    let resource = resource(group, version, plural);
    let known = KINDS.iter().find(|known| (known.0, known.1, known.2) == (group, version, plural));
    let Some(known) = known else { return Err(not_found(&resource, plural)) };
    if !subresource.is_empty() && !known.5.contains(&subresource) {
        return Err(not_found(&resource, subresource));
    }
    let (namespace, name, subresource) = (namespace.to_owned(), name.to_owned(), subresource.to_owned());
    Ok(ResourcePath { resource, namespace, name, subresource })
}

/// As text: of fifty thousand objects, a copy of each would take longer than the answer.
fn list(store: &Store, place: &ResourcePath, query: &HashMap<String, String>) -> String {
    let (objects, version) = store.list(&place.resource, &place.namespace);
    let selection = ObjectSelector::from_query(query);
    let mut items = objects.iter().filter(|object| selection.matches(object));
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let skip: usize = query.get("continue").and_then(|skip| skip.parse().ok()).unwrap_or(0);
    let page: Vec<String> = items.by_ref().skip(skip).take(limit).map(ToString::to_string).collect();
    let more = if items.next().is_some() { json!((skip + limit).to_string()) } else { Value::Null };
    let metadata = json!({"resourceVersion": version.to_string(), "continue": more});
    let (api_version, kind) = (api_version(&place.resource), kind_of(&place.resource));
    let items = page.join(",");
    format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}List","metadata":{metadata},"items":[{items}]}}"#)
}

/// By labels and by the few fields that can be selected by.
pub struct ObjectSelector {
    labels: Vec<String>,
    fields: Vec<String>,
}

impl ObjectSelector {
    pub fn from_query(query: &HashMap<String, String>) -> Self {
        let terms = |name: &str| {
            let terms = query.get(name).map(String::as_str).unwrap_or_default().split(',');
            terms.filter(|term| !term.is_empty()).map(str::to_owned).collect()
        };
        Self { labels: terms("labelSelector"), fields: terms("fieldSelector") }
    }

    pub fn matches(&self, object: &Value) -> bool {
        let label = |term: &String| {
            let labels = &object["metadata"]["labels"];
            match term.split_once('=') {
                Some((name, value)) => labels[name] == value.trim_start_matches('='),
                None => !labels[term.as_str()].is_null(),
            }
        };
        let field = |term: &String| {
            let (path, value) = term.split_once('=').unwrap_or((term, ""));
            path.split('.').fold(object, |node, step| &node[step]) == value
        };
        self.labels.iter().all(label) && self.fields.iter().all(field)
    }
}

fn scale(object: &Value) -> Value {
    let labels = object["spec"]["selector"]["matchLabels"].as_object();
    let labels: Vec<String> =
        labels.into_iter().flatten().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
    // As the definition of `servers` says it, in the status.
    let selector = object["status"]["selector"].as_str().map_or(labels.join(","), str::to_owned);
    let metadata = &object["metadata"];
    json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"],
            "resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]},
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"].as_u64().unwrap_or(0), "selector": selector},
    })
}

fn discovery(group: &str, version: &str) -> Value {
    let known = KINDS.iter().filter(|known| (known.0, known.1) == (group, version));
    let resources: Vec<Value> = known
        .flat_map(|(.., plural, kind, namespaced, subresources)| {
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            let one = |name: String| {
                json!({"name": name, "kind": kind, "namespaced": namespaced, "singularName": "", "verbs": verbs})
            };
            let names = subresources.iter().map(|subresource| format!("{plural}/{subresource}"));
            std::iter::once((*plural).to_owned()).chain(names).map(one).collect::<Vec<_>>()
        })
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

pub fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), percent_decode(value))).collect()
}

/// Percent signs and plus signs undone.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap()
}

pub fn json_answer(code: u16, value: &Value) -> Response<Body> {
    text_answer(code, value.to_string())
}

fn text_answer(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).boxed();
    let status = StatusCode::from_u16(code).unwrap();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

pub fn status(failure: &ApiFailure) -> Value {
    let ApiFailure { code, reason, message } = failure;
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code})
}

fn failure(failure: &ApiFailure) -> Response<Body> {
    json_answer(failure.code, &status(failure))
}
