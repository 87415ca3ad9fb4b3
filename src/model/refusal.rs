//! Reasons for which the router itself refuses or fails a request. They are independent of HTTP; the data plane maps
//! each to a status code.

use std::time::Duration;

/// Every error that the router makes. Errors of a model are passed on and are not among these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumCount)]
pub enum Refusal {
    /// The client is not authenticated or not authorized.
    Denied(AuthFailure),
    /// The key set that the token's signature is verified with is not available. A retry makes sense after this time.
    TokenKeysUnavailable(Duration),
    /// The path names no endpoint.
    EndpointNotFound,
    /// `azureml-model-deployment` names no deployment of the endpoint.
    DeploymentNotFound,
    /// No deployment of the endpoint has weight.
    NoLiveDeployment,
    /// The body is longer than this many bytes.
    PayloadTooLarge(u64),
    /// The request head did not arrive in time.
    HeadTimeout,
    /// The request body did not arrive in time.
    BodyTimeout,
    /// The request head is larger than allowed.
    HeadTooLarge,
    /// The client left in the middle of its body, or the framing of the body is broken.
    BodyCutShort,
    /// The request cannot be passed on, for this reason.
    BadRequest(&'static str),
    /// The method is CONNECT or TRACE.
    MethodNotAllowed,
    /// A token was requested with another method than POST.
    PostOnly,
    /// The queue is full. A retry makes sense after this time.
    QueueFull(Duration),
    /// The queue wait was exceeded. A retry makes sense after this time.
    QueueTimeout(Duration),
    /// No replica is ready. A retry makes sense after this time.
    NoReadyReplica(Duration),
    /// The router has reached its limit of client connections.
    TooManyConnections,
    /// The model did not begin its answer within this time.
    ModelTimeout(Duration),
    /// No connection to a replica could be made.
    ReplicaUnreachable,
    /// The replica closed the connection, or sent something that is not HTTP, before it answered.
    ReplicaClosed,
}

/// Reasons for which a client is not authenticated or not authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::EnumCount)]
pub enum AuthFailure {
    /// There is no `authorization` header of the form `Bearer …`.
    Missing,
    /// The key is not a key of this endpoint.
    InvalidKey,
    /// The credential is not a signed token (JWT) with a supported algorithm.
    Malformed,
    /// The token is signed with a key that its issuer does not publish.
    UnknownSigningKey,
    /// The signature does not match the token.
    BadSignature,
    /// The token has expired.
    Expired,
    /// The token is not valid yet.
    NotYetValid,
    /// The endpoint does not trust the issuer of the token.
    WrongIssuer,
    /// The token is for another audience.
    WrongAudience,
    /// The router issued the token for another endpoint.
    WrongEndpoint,
    /// The token lacks a claim, a scope or a role that the endpoint requires.
    MissingClaim,
    /// The user of the cluster may not get a token of the endpoint.
    NotAllowed,
    /// The endpoint issues no tokens, because it has no keys that a client could ask with.
    NoTokens,
}
