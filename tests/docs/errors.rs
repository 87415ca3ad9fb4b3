//! `docs/reference/errors.md`, from the router's own answers.

use std::collections::BTreeMap;

use inference_router::proxy::error_catalog;

use crate::{assert_page, cell};

const HEAD: &str = "\
# Errors

<!-- Generated from src/proxy/respond.rs and tests/docs/errors.rs by `UPDATE_FILES=1 cargo test --test docs`. Do not edit. -->

An error that the router makes is a problem document (RFC 9457) of type `application/problem+json`:

```json
{
  \"type\": \"https://inference-router.dev/problems/too_many_requests\",
  \"title\": \"Service Unavailable\",
  \"status\": 503,
  \"detail\": \"No replica became free in time. Send it again after the time in retry-after.\",
  \"code\": \"too_many_requests\",
  \"requestId\": \"8475db1b-f1bf-4718-8aa3-8aad17f09519\",
  \"endpoint\": \"my-endpoint\",
  \"deployment\": \"blue\"
}
```

`type` is the address of the section below whose heading is the `code`. `requestId` is the `x-request-id` of the response
and of the access log. `endpoint` and `deployment` are left out while they are not known. The same codes are the `reason`
of `requests_rejected_total` and `auth_failures_total`.

The setting `statusCodes` chooses the status codes of Azure's Kubernetes endpoints (`kubernetes`, the default) or of its
managed endpoints (`managed`).

An error that the model makes is passed on with the model's body. It has the headers
`ms-azureml-model-error-statuscode` (the model's own status) and `ms-azureml-model-error-reason: model_error`. Its status
is 502 for a model's 500 and otherwise the model's own (`kubernetes`), or 424 (`managed`).
";

/// What an operator or client programmer should know of each code, beyond its `detail`.
const ADVICE: [(&str, &str); 27] = [
    (
        "bad_request",
        "Two servers could read the request differently, or its framing is broken. The connection is closed. Check the proxy or client library in front of the router.",
    ),
    (
        "client_timeout",
        "The request head did not arrive within `limits.headerReadTimeout`, the body was silent for `limits.bodyIdleTimeout`, or the body came more slowly than `requestTimeoutMs` allows. Check the network of the client; raise the limit if clients are slow by nature.",
    ),
    (
        "deployment_not_found",
        "The header `azureml-model-deployment` names a deployment that the endpoint does not have. `GET /api/endpoints` on the admin listener lists the names.",
    ),
    (
        "endpoint_not_found",
        "No valid endpoint has the name in the path. If the endpoint was just created, look at its conditions (`kubectl describe oe NAME`) or at `/readyz`: a document with problems is not served.",
    ),
    (
        "expired_token",
        "The claim `exp` of the token is in the past, with one minute of leeway. Get a new token. If new tokens fail too, compare the clocks of the issuer and of the router.",
    ),
    (
        "forbidden",
        "The caller is known, but may not get a token: it lacks the right to `create` `onlineendpoints/token` in the cluster, or the endpoint has no keys that a caller could show. See [Authentication](../guides/authentication.md).",
    ),
    (
        "head_too_large",
        "The request line and headers exceed `limits.maxHeaderBytes` or `limits.maxHeaders`. Large cookies are the usual cause.",
    ),
    (
        "invalid_key",
        "The bearer token is neither the primary nor the secondary key. A key that was rotated a moment ago is the usual cause.",
    ),
    ("invalid_token", "The signature of the token does not match its content, although the signing key is known."),
    (
        "malformed_token",
        "The bearer token is not a JWT with a supported algorithm and an `exp` claim. An endpoint with `authMode: aad_token` or `aml_token` does not accept a key here.",
    ),
    (
        "method_not_allowed",
        "The method is CONNECT or TRACE, or a token was asked for with another method than POST. The header `allow` lists what is allowed.",
    ),
    (
        "missing_claim",
        "The token is valid, but lacks a claim, scope or role that `jwt.issuers[]` asks for. Grant it at the issuer.",
    ),
    ("missing_credential", "The request has no header `authorization: Bearer …`."),
    (
        "model_timeout",
        "The model did not begin its answer within `requestTimeoutMs` of the deployment. If this happens under load only, the replica shares its CPU with too much; if it happens always, raise the timeout.",
    ),
    (
        "no_live_deployment",
        "The weights of the endpoint sum to 0, which closes it, and the request names no deployment.",
    ),
    (
        "no_ready_replica",
        "No replica of the deployment is ready. Look at `replicas{state}` in the metrics, at `/api/endpoints` (`problem` says why a local process does not start) or at the pods of the workload.",
    ),
    (
        "payload_too_large",
        "The body is larger than `limits.maxPayloadBytes`, announced in `content-length` or found while it was read.",
    ),
    (
        "replica_closed",
        "The replica closed the connection, or sent something that is not HTTP/1.1, before it answered. The model may have worked on the request, so the router does not send it again. The log of the router names the replica; look for a crash in the log of the model.",
    ),
    (
        "replica_unreachable",
        "No connection to a replica could be made, on at most three replicas. Nothing reached a model, so it is safe to send the request again. Check the port, the network policy, and `upstreamTls` if the replicas speak TLS.",
    ),
    (
        "token_keys_unavailable",
        "The public keys of the token's issuer could not be fetched, or too many tokens wait to be verified. `key_set_fetches_total{result=\"error\"}` and the log say what failed.",
    ),
    (
        "token_not_yet_valid",
        "The claim `nbf` of the token is in the future, with one minute of leeway. Compare the clocks of the issuer and of the router.",
    ),
    (
        "too_many_connections",
        "The router holds `limits.maxConnections` client connections. Raise the limit, or add routers.",
    ),
    (
        "too_many_requests",
        "Every replica is at its cap, and the queue is full (`maxQueueLength`) or the request waited for `maxQueueWaitMs`. `retry-after` is the predicted time until a slot is free. Add replicas, lower `targetUtilizationPercentage`, or allow a longer wait.",
    ),
    (
        "unknown_signing_key",
        "The token names a signing key (`kid`) that its issuer does not publish. The keys were fetched again for this token, at most every 30 seconds.",
    ),
    ("wrong_audience", "The claim `aud` of the token is not among `audiences` of the issuer in `jwt.issuers[]`."),
    ("wrong_endpoint", "The token was issued by the router for another endpoint."),
    (
        "wrong_issuer",
        "The claim `iss` of the token is not the `issuer` of any entry of `jwt.issuers[]`. It is compared letter by letter.",
    ),
];

#[test]
fn the_page_of_errors_is_what_the_code_says() {
    let mut codes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for entry in error_catalog() {
        codes.entry(entry.code).or_default().push(entry);
    }
    let known: Vec<&str> = codes.keys().copied().collect();
    assert_eq!(known, ADVICE.map(|(code, _)| code), "each code has one entry in ADVICE, in order");
    let mut page = format!("{HEAD}\n| code | `kubernetes` | `managed` |\n|---|---|---|\n");
    for (code, entries) in &codes {
        let of = |mode: fn(&inference_router::proxy::ErrorEntry) -> u16| {
            let mut statuses: Vec<u16> = entries.iter().map(mode).collect();
            statuses.dedup();
            statuses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let (kubernetes, managed) = (of(|entry| entry.kubernetes_status), of(|entry| entry.managed_status));
        page.push_str(&format!("| [`{code}`](#{code}) | {kubernetes} | {managed} |\n"));
    }
    for ((code, entries), (_, advice)) in codes.iter().zip(ADVICE) {
        page.push_str(&format!("\n## {code}\n\n{advice}\n\n"));
        for entry in entries {
            page.push_str(&format!("> {}\n>\n", cell(&entry.detail)));
        }
        page.truncate(page.len() - 2);
    }
    assert_page("errors.md", &page);
}
