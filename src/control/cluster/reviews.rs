//! Authentication and authorization of token requests by the API server: a TokenReview for the identity of the caller,
//! then a SubjectAccessReview of `create onlineendpoints/token`, which corresponds to Azure's
//! `onlineEndpoints/token/action`.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use crate::model::crd::{API_GROUP, PLURAL_NAME};
use crate::model::refusal::AuthFailure;
use crate::state::access_reviews::AccessReview;

/// The number of concurrent reviews: a flood of token requests must not become a flood of requests to the API server.
const MAX_CONCURRENT_REVIEWS: usize = 8;

/// Runs the review of each request until the channel is closed.
pub(super) async fn run(client: Client, mut reviews: Receiver<AccessReview>) {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_REVIEWS));
    let mut tasks = JoinSet::new();
    while let Some(review) = reviews.recv().await {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        if review.result_tx.is_closed() {
            continue;
        }
        let client = client.clone();
        tasks.spawn(async move {
            let AccessReview { token, namespace, endpoint, result_tx } = review;
            match review_token(client, token, &namespace, &endpoint).await {
                // A failed send means that nobody waits for the outcome any more.
                Ok(outcome) => drop(result_tx.send(outcome)),
                Err(error) => tracing::warn!(
                    namespace,
                    endpoint,
                    %error,
                    "token review failed; the service account must be allowed to create tokenreviews and \
                     subjectaccessreviews"
                ),
            }
            drop(permit);
        });
    }
}

async fn review_token(
    client: Client,
    token: String,
    namespace: &str,
    endpoint: &str,
) -> Result<Result<String, AuthFailure>, kube::Error> {
    let spec = TokenReviewSpec { token: Some(token), ..TokenReviewSpec::default() };
    let review = TokenReview { spec, ..TokenReview::default() };
    let token_review = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let user = token_review.status.filter(|status| status.authenticated == Some(true)).and_then(|status| status.user);
    let Some(user) = user else { return Ok(Err(AuthFailure::InvalidKey)) };
    let UserInfo { username, uid, groups, extra } = user;
    let spec = SubjectAccessReviewSpec {
        user: username.clone(),
        uid,
        groups,
        extra,
        resource_attributes: Some(ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some(API_GROUP.to_owned()),
            resource: Some(PLURAL_NAME.to_owned()),
            subresource: Some("token".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(endpoint.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let access_review = Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await?;
    let is_allowed = access_review.status.is_some_and(|status| status.allowed);
    Ok(if is_allowed { Ok(username.unwrap_or_default()) } else { Err(AuthFailure::NotAllowed) })
}
