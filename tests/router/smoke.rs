//! The shortest way through the router.

use crate::harness::{Model, Router, endpoint};

#[tokio::test]
async fn a_scoring_request_reaches_the_model_and_its_answer_the_client() {
    let model = Model::named("from blue").await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let answer = router.score("{}").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "from blue"));
    assert_eq!(answer.header("azureml-model-deployment"), "blue");
}
