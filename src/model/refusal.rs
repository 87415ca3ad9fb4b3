//! Why the router itself refuses a request, or fails it. No HTTP here: the data plane maps each to a status.

use std::time::Duration;

/// Every error the router makes. One that a model makes is passed on, never one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The caller may not.
    Denied(Denied),
    /// The keys that a token's signature is checked with cannot be had; come back after this long.
    TokenKeysUnavailable(Duration),
    /// The path names no endpoint.
    EndpointNotFound,
    /// `azureml-model-deployment` names no deployment of the endpoint.
    DeploymentNotFound,
    /// No deployment of the endpoint has weight.
    NoLiveDeployment,
    /// The body is longer than this many bytes.
    PayloadTooLarge(u64),
    /// The client sent its head too slowly.
    HeadTimeout,
    /// The client sent its body too slowly.
    BodyTimeout,
    /// The request head is larger than allowed.
    HeadTooLarge,
    /// The client left, or broke the request's form, in the middle of its body.
    BodyCutShort,
    /// Not a request we can pass on; says why.
    BadRequest(&'static str),
    /// CONNECT or TRACE.
    MethodNotAllowed,
    /// Another method than POST, to ask for a token.
    PostOnly,
    /// The queue was full; come back after this long.
    QueueFull(Duration),
    /// The longest wait was over; come back after this long.
    QueueTimeout(Duration),
    /// No replica can take requests; come back after this long.
    NoReadyReplica(Duration),
    /// The router has as many connections as it may.
    TooManyConnections,
    /// No response head within this time.
    ModelTimeout(Duration),
    /// No connection to a replica could be made.
    ReplicaUnreachable,
    /// The replica closed, or spoke something that is not HTTP, before it answered.
    ReplicaClosed,
}

/// Why a caller may not use an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denied {
    /// No `authorization` header, or not of the form `Bearer …`.
    Missing,
    /// A key, but none of this endpoint's.
    InvalidKey,
    /// Not a signed token (JWT) of a form and an algorithm that is understood.
    Malformed,
    /// Signed with a key that its issuer does not have.
    UnknownSigningKey,
    /// The signature is not that of the token.
    BadSignature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Issued by somebody this endpoint does not know.
    WrongIssuer,
    /// Issued for somebody else.
    WrongAudience,
    /// Issued by the router, for another endpoint.
    WrongEndpoint,
    /// Lacks a claim, a scope or a role that the endpoint asks for.
    MissingClaim,
    /// A user of the cluster that the endpoint is in, who may not have a token of it.
    NotAllowed,
    /// The endpoint hands out no tokens: it has no keys that anybody could ask with.
    NoTokens,
}
