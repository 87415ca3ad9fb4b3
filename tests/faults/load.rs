//! Clients in the background that send requests during a fault and record the outcome of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{CheckedRequest, CheckingClient, OUTCOME_CONNECT_REFUSED, OUTCOME_EXACT};
use crate::{POLL_INTERVAL, with_timeout};

/// Rest of a client between two questions: the processors are few, and not only the clients' own.
const CLIENT_PAUSE: Duration = Duration::from_millis(4);

/// Questions that one client can ask.
const NUMBERS: u64 = 1 << 32;

/// Makes the question with this number.
pub type RequestFactory = Arc<dyn Fn(u64) -> CheckedRequest + Send + Sync>;

/// Clients that ask until they are stopped. Every second one keeps its connection, the others connect for each question.
pub struct Load {
    stop: Arc<AtomicBool>,
    exact: Arc<AtomicU64>,
    clients: JoinSet<Tally>,
}

/// What became of questions.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many were answered exactly.
    pub exact: u64,
    /// The longest that an exact answer took.
    pub slowest: Duration,
    /// The numbers of those with another outcome.
    other_outcomes: BTreeMap<String, Vec<u64>>,
}

impl Load {
    pub fn start(
        address: SocketAddr,
        clients: u64,
        questions: impl Fn(u64) -> CheckedRequest + Send + Sync + 'static,
    ) -> Self {
        let (stop, exact, questions) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::new(questions));
        let each = |client| run_client(address, client, questions.clone(), stop.clone(), exact.clone());
        let clients = (0..clients).map(each).collect();
        Self { stop, exact, clients }
    }

    /// Exact answers so far.
    pub fn exact_answers(&self) -> u64 {
        self.exact.load(Ordering::Relaxed)
    }

    /// Waits for so many more exact answers.
    pub async fn wait_for_answers(&self, answers: u64) {
        let until = self.exact_answers() + answers;
        with_timeout("exact answers", async {
            while self.exact_answers() < until {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        })
        .await;
    }

    /// Lets each client finish what it is asking.
    pub async fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        while let Some(one) = self.clients.join_next().await {
            all.add(one.unwrap());
        }
        all
    }
}

async fn run_client(
    address: SocketAddr,
    client: u64,
    questions: RequestFactory,
    stop: Arc<AtomicBool>,
    exact: Arc<AtomicU64>,
) -> Tally {
    let (mut caller, mut tally) = (CheckingClient::new(address), Tally::default());
    for number in client * NUMBERS.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let asked = Instant::now();
        let outcome = caller.send(&questions(number)).await;
        tokio::time::sleep(if outcome == OUTCOME_CONNECT_REFUSED { POLL_INTERVAL } else { CLIENT_PAUSE }).await;
        if outcome == OUTCOME_EXACT {
            exact.fetch_add(1, Ordering::Relaxed);
        }
        tally.record_outcome(number, outcome, asked.elapsed());
        if client % 2 == 1 {
            caller.close_connection();
        }
    }
    tally
}

impl Tally {
    /// One more question, its number, what became of it, and how long that took.
    pub fn record_outcome(&mut self, number: u64, outcome: String, took: Duration) {
        if outcome == OUTCOME_EXACT {
            self.exact += 1;
            self.slowest = self.slowest.max(took);
        } else {
            self.other_outcomes.entry(outcome).or_default().push(number);
        }
    }

    /// All of another tally.
    pub fn add(&mut self, other: Self) {
        self.exact += other.exact;
        self.slowest = self.slowest.max(other.slowest);
        for (outcome, numbers) in other.other_outcomes {
            self.other_outcomes.entry(outcome).or_default().extend(numbers);
        }
    }

    /// The numbers of the questions with this outcome, which is not the exact answer.
    pub fn numbers(&self, outcome: &str) -> &[u64] {
        self.other_outcomes.get(outcome).map_or(&[], Vec::as_slice)
    }

    /// How many had this outcome, which is not the exact answer.
    pub fn outcome_count(&self, outcome: &str) -> u64 {
        self.numbers(outcome).len() as u64
    }

    /// Checks that there were answers, and that each was exact or is one of `allowed`.
    pub fn assert_only(&self, allowed: &[&str]) {
        let unexplained: Vec<_> =
            self.other_outcomes.iter().filter(|(outcome, _)| !allowed.contains(&outcome.as_str())).collect();
        assert!(unexplained.is_empty(), "{unexplained:#?} beside {} exact answers", self.exact);
        assert!(self.exact > 0, "{self:?}");
    }
}
