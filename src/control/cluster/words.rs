//! What the API server's client says of a failure, for people.

use std::error::Error;

use kube::runtime::watcher;

/// What went wrong, without what only a developer of the client could use.
pub(in crate::control) fn of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answers {}", status.code),
        kube::Error::Auth(error) => format!("it cannot be shown who asks: {error}"),
        kube::Error::Service(error) => format!("the API server cannot be reached ({})", innermost(&**error)),
        kube::Error::HyperError(error) => format!("the API server cannot be reached ({})", innermost(error)),
        kube::Error::Discovery(_) => "the API server does not know it".to_owned(),
        other => innermost(other),
    }
}

/// The same, of a watch.
pub(super) fn of_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => of(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The cause of all: what wraps it says less.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
