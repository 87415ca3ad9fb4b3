//! Error messages for failures of requests to the API server.

use std::error::Error;

use kube::runtime::watcher;

/// Describes an error for users, without details that help only developers of the client library.
pub(in crate::control) fn describe_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answers {}", status.code),
        kube::Error::Auth(error) => format!("it cannot be shown who asks: {error}"),
        kube::Error::Service(error) => format!("the API server cannot be reached ({})", root_cause(&**error)),
        kube::Error::HyperError(error) => format!("the API server cannot be reached ({})", root_cause(error)),
        kube::Error::Discovery(_) => "the API server does not know it".to_owned(),
        other => root_cause(other),
    }
}

/// Describes an error of a watch for users.
pub(super) fn describe_watch_error(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => describe_error(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Returns the message of the innermost error, which says more than those that wrap it.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
