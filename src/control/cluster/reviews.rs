//! Asks the API server who somebody is, and whether they may have a token of an endpoint: TokenReview, then
//! SubjectAccessReview of `create onlineendpoints/token`, which is Azure's `onlineEndpoints/token/action`.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use crate::model::crd::{GROUP, PLURAL};
use crate::model::refusal::Denied;
use crate::state::reviews::Review;

/// Asked at the same time: a flood of tokens must not become one of the API server.
const AT_ONCE: usize = 8;

/// Asks for whoever comes, for ever.
pub(super) async fn run(client: Client, mut reviews: Receiver<Review>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    while let Some(review) = reviews.recv().await {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        if review.verdict.is_closed() {
            continue;
        }
        let client = client.clone();
        tasks.spawn(async move {
            let Review { token, namespace, endpoint, verdict } = review;
            match ask(client, token, &namespace, &endpoint).await {
                // Nobody waits any more.
                Ok(told) => drop(verdict.send(told)),
                Err(error) => tracing::warn!(
                    namespace,
                    endpoint,
                    %error,
                    "a token of the cluster cannot be looked at; the service account must be allowed to create tokenreviews \
                     and subjectaccessreviews"
                ),
            }
            drop(place);
        });
    }
}

async fn ask(
    client: Client,
    token: String,
    namespace: &str,
    endpoint: &str,
) -> Result<Result<String, Denied>, kube::Error> {
    let spec = TokenReviewSpec { token: Some(token), ..TokenReviewSpec::default() };
    let review = TokenReview { spec, ..TokenReview::default() };
    let told = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let user = told.status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
    let Some(user) = user else { return Ok(Err(Denied::InvalidKey)) };
    let UserInfo { username, uid, groups, extra } = user;
    let spec = SubjectAccessReviewSpec {
        user: username.clone(),
        uid,
        groups,
        extra,
        resource_attributes: Some(ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some(GROUP.to_owned()),
            resource: Some(PLURAL.to_owned()),
            subresource: Some("token".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(endpoint.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let told = Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await?;
    let is_allowed = told.status.is_some_and(|status| status.allowed);
    Ok(if is_allowed { Ok(username.unwrap_or_default()) } else { Err(Denied::NotAllowed) })
}
