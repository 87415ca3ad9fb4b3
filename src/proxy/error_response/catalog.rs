//! Lists every error response of the router, for the reference documentation.

use std::time::Duration;

use strum::EnumCount;

use super::{detail, error_code, status_code};
use crate::model::refusal::{AuthFailure, Refusal};
use crate::model::router_settings::StatusCodes;

/// One way in which the router refuses or fails a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorEntry {
    /// The `code` of the problem document; several entries may share one.
    pub code: &'static str,
    /// The HTTP status with `statusCodes: kubernetes`.
    pub kubernetes_status: u16,
    /// The HTTP status with `statusCodes: managed`.
    pub managed_status: u16,
    /// The `detail` of the problem document, with sample values.
    pub detail: String,
}

/// Returns an entry for each [`Refusal`] and each [`AuthFailure`].
pub fn error_catalog() -> Vec<ErrorEntry> {
    let denied = AUTH_FAILURES.map(Refusal::Denied);
    let others = sample_refusals().into_iter().filter(|refusal| !matches!(refusal, Refusal::Denied(_)));
    let entry = |refusal| ErrorEntry {
        code: error_code(refusal),
        kubernetes_status: status_code(refusal, StatusCodes::Kubernetes).as_u16(),
        managed_status: status_code(refusal, StatusCodes::Managed).as_u16(),
        detail: detail(refusal),
    };
    denied.into_iter().chain(others).map(entry).collect()
}

/// All authentication failures. The array is as long as the enum, so that a new variant does not compile until it is
/// listed.
const AUTH_FAILURES: [AuthFailure; AuthFailure::COUNT] = [
    AuthFailure::Missing,
    AuthFailure::InvalidKey,
    AuthFailure::Malformed,
    AuthFailure::UnknownSigningKey,
    AuthFailure::BadSignature,
    AuthFailure::Expired,
    AuthFailure::NotYetValid,
    AuthFailure::WrongIssuer,
    AuthFailure::WrongAudience,
    AuthFailure::WrongEndpoint,
    AuthFailure::MissingClaim,
    AuthFailure::NotAllowed,
    AuthFailure::NoTokens,
];

/// Returns one refusal of each kind, with sample values.
fn sample_refusals() -> [Refusal; Refusal::COUNT] {
    let retry_after = Duration::from_secs(2);
    [
        Refusal::Denied(AuthFailure::Missing),
        Refusal::TokenKeysUnavailable(retry_after),
        Refusal::EndpointNotFound,
        Refusal::DeploymentNotFound,
        Refusal::NoLiveDeployment,
        Refusal::PayloadTooLarge(104_857_600),
        Refusal::HeadTimeout,
        Refusal::BodyTimeout,
        Refusal::HeadTooLarge,
        Refusal::BodyCutShort,
        Refusal::BadRequest("its content-length is not one plain number"),
        Refusal::MethodNotAllowed,
        Refusal::PostOnly,
        Refusal::QueueFull(retry_after),
        Refusal::QueueTimeout(retry_after),
        Refusal::NoReadyReplica(retry_after),
        Refusal::TooManyConnections,
        Refusal::ModelTimeout(Duration::from_secs(5)),
        Refusal::ReplicaUnreachable,
        Refusal::ReplicaClosed,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_refusal_is_listed_once() {
        let refusals: HashSet<_> = sample_refusals().iter().map(std::mem::discriminant).collect();
        assert_eq!(refusals.len(), Refusal::COUNT);
        let failures: HashSet<_> = AUTH_FAILURES.iter().map(std::mem::discriminant).collect();
        assert_eq!(failures.len(), AuthFailure::COUNT);
    }
}
