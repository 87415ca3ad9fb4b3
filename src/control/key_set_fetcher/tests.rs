use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio::time::advance;

use super::*;

const KEYS: &[u8] =
    br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// What one fetch comes to: keys that are good for so many seconds, or for as long as is usual, or a failure.
type FetchAnswer = Result<Option<u64>, ()>;

/// One set that is kept fresh, in virtual time.
struct KeySetFixture {
    tokens: Arc<TokenState>,
    set: Option<Arc<RemoteKeySet>>,
    answers: Arc<Mutex<VecDeque<FetchAnswer>>>,
    fetches: Arc<Mutex<Vec<u64>>>,
    task: JoinHandle<()>,
}

impl KeySetFixture {
    /// Fetches come to `answers` in turn, and then go on as the last.
    async fn start(answers: impl IntoIterator<Item = FetchAnswer>) -> Self {
        let tokens = Arc::new(TokenState::default());
        let source = KeySetSource {
            issuer: "https://issuer.example".to_owned(),
            jwks_uri: None,
            ca_file: None,
            bearer_token_file: None,
            allow_http: false,
        };
        let set = tokens.key_sets.get_or_create(&source);
        let [added] = <[_; 1]>::try_from(tokens.key_sets.next_unclaimed().await).unwrap();
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let fetches = Arc::new(Mutex::new(Vec::new()));
        let (began, next, seen) = (Instant::now(), answers.clone(), fetches.clone());
        let fetch = move |_| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed().as_secs());
            let mut answers = next.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
            async move {
                let keys = |age: Option<u64>| (KeySet::parse(KEYS).unwrap(), age.map(Duration::from_secs));
                answer.unwrap().map(keys).map_err(|()| FetchError::TooLarge("test".to_owned()))
            }
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let task = tokio::spawn(refresh_until_unused(added, tokens.clone(), metrics, fetch));
        let kept = Self { tokens, set: Some(set), answers, fetches, task };
        kept.run_due_tasks().await;
        kept
    }

    /// Lets everything happen that is due now.
    async fn run_due_tasks(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// The seconds at which fetches began, up to now.
    fn fetch_seconds(&self) -> Vec<u64> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn advance_seconds(&self, seconds: u64) {
        for _ in 0..seconds {
            advance(Duration::from_secs(1)).await;
            self.run_due_tasks().await;
        }
    }

    fn has_keys(&self) -> bool {
        self.set.as_ref().is_some_and(|set| set.keys().is_some())
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_before_they_are_too_old() {
    for (age, next) in [(Some(1000), 800), (Some(1), 240), (None, 2880)] {
        let kept = KeySetFixture::start([Ok(age)]).await;
        assert!(kept.has_keys());
        kept.advance_seconds(next - 1).await;
        assert_eq!(kept.fetch_seconds(), [0], "{age:?}");
        kept.advance_seconds(2).await;
        assert_eq!(kept.fetch_seconds(), [0, next], "{age:?}");
    }
    let longest = KeySetFixture::start([Ok(Some(u64::MAX))]).await;
    advance(Duration::from_secs(69_119)).await;
    longest.run_due_tasks().await;
    assert_eq!(longest.fetch_seconds(), [0]);
    longest.advance_seconds(2).await;
    assert_eq!(longest.fetch_seconds(), [0, 69_120], "four fifths of a day");
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_fails_is_asked_ever_more_slowly() {
    let kept = KeySetFixture::start([Err(())]).await;
    assert!(!kept.has_keys());
    kept.advance_seconds(200).await;
    assert_eq!(kept.fetch_seconds(), [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    *kept.answers.lock().unwrap() = [Ok(None)].into();
    kept.advance_seconds(60).await;
    assert!(kept.has_keys());
}

#[tokio::test(start_paused = true)]
async fn the_last_good_keys_serve_for_a_day() {
    let kept = KeySetFixture::start([Ok(Some(300)), Err(())]).await;
    let before = kept.tokens.verified.key_generation();
    for _ in 0..1438 {
        advance(Duration::from_secs(60)).await;
        kept.run_due_tasks().await;
        assert!(kept.has_keys());
    }
    assert_eq!(kept.tokens.verified.key_generation(), before, "what was found good stays so");
    for _ in 0..4 {
        advance(Duration::from_secs(60)).await;
        kept.run_due_tasks().await;
    }
    assert!(!kept.has_keys());
    assert_ne!(kept.tokens.verified.key_generation(), before, "what was found good with them is forgotten");
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_have_them_fetched_at_most_every_half_minute() {
    let kept = KeySetFixture::start([Ok(None)]).await;
    let set = kept.set.clone().unwrap();
    let refresh_timeout = Duration::from_secs(5);
    assert!(set.request_refresh(refresh_timeout).await);
    for _ in 0..100 {
        assert!(!set.request_refresh(refresh_timeout).await);
    }
    assert_eq!(kept.fetch_seconds(), [0, 0]);
    advance(Duration::from_secs(30)).await;
    let (one, two) = tokio::join!(set.request_refresh(refresh_timeout), set.request_refresh(refresh_timeout));
    assert!(one && two);
    assert_eq!(kept.fetch_seconds(), [0, 0, 30], "one fetch for both");
}

#[tokio::test(start_paused = true)]
async fn keys_that_nobody_needs_any_more_are_not_fetched() {
    let mut kept = KeySetFixture::start([Ok(Some(300))]).await;
    kept.set = None;
    kept.advance_seconds(250).await;
    assert_eq!(kept.fetch_seconds(), [0]);
    assert!(kept.task.is_finished());
}

#[test]
fn the_age_is_read_where_it_stands() {
    let age = |values: &[&str]| {
        let values = values.iter().map(|value| (CACHE_CONTROL, value.parse().unwrap()));
        max_age(&values.collect())
    };
    assert_eq!(age(&["public, Max-Age=600"]), Some(Duration::from_secs(600)));
    assert_eq!(age(&["no-cache", "max-age=\"5\""]), Some(Duration::from_secs(5)));
    assert_eq!(age(&["s-maxage=5"]), None);
    assert_eq!(age(&["max-age=soon"]), None);
}
