//! Comparison of live and shadow answers off the data plane. Workers submit both answers to one thread that runs with
//! lowered priority and uses at most a quarter of a CPU. Pairs beyond its capacity are not compared, but counted; a
//! worker never waits for the thread.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::metrics::Metrics;
use super::mirror::{Budget, MemoryReservation, MirrorEntry};
use super::routing_table::DeploymentEntry;
use crate::model::endpoint::{self, ComparisonSettings};
use crate::model::name::Name;
use crate::policy::compare::window::{self, ComparisonWindow};
use crate::policy::compare::{
    CapturedAnswer, ComparisonOutcome, ComparisonReport, Difference, DifferenceSample, NotComparedReason,
    compare_answers,
};

/// Capacity of the queue, in pairs of answers.
const QUEUE_CAPACITY: usize = 1024;
/// Memory for the comparison windows of all endpoints together: 32 MiB. JSON paths and samples are few and short for
/// each endpoint and are not included.
const WINDOW_MEMORY_BYTES: usize = 32 << 20;
/// After some work the thread rests for this multiple of the time that it worked.
const REST_FACTOR: u32 = 3;
/// The longest time that the thread works without a rest.
const MAX_WORK_BURST: Duration = Duration::from_millis(2);
/// Niceness of the thread, as for `nice`.
const THREAD_NICENESS: i32 = 10;

/// Results of comparing the answers of one endpoint.
#[derive(Debug)]
pub struct ComparisonResults {
    endpoint: Name,
    settings: ComparisonSettings,
    window: Mutex<ComparisonWindow>,
    budget: Arc<Budget>,
}

impl ComparisonResults {
    /// Creates the memory budget that the windows of all endpoints share.
    pub fn new_budget() -> Arc<Budget> {
        Budget::new(WINDOW_MEMORY_BYTES)
    }

    /// Returns the results for a mirror: those of `before` if it compares the same deployments by the same rules,
    /// otherwise empty ones.
    pub fn reuse_or_new(
        before: Option<&MirrorEntry>,
        endpoint: &Name,
        to: &DeploymentEntry,
        settings: &endpoint::Mirror,
        memory: &Arc<Budget>,
    ) -> Option<Arc<Self>> {
        let rules = settings.comparison.as_ref()?;
        let same = before.filter(|before| before.shadow.spec.name == to.spec.name);
        let kept = same.and_then(|before| before.comparison_results.as_ref()).filter(|kept| kept.settings == *rules);
        let new = || {
            let window = Mutex::new(ComparisonWindow::new(Instant::now()));
            Arc::new(Self { endpoint: endpoint.clone(), settings: rules.clone(), window, budget: memory.clone() })
        };
        Some(kept.cloned().unwrap_or_else(new))
    }

    /// Returns a report of the results so far.
    pub fn report(&self) -> ComparisonReport {
        let now = Instant::now();
        self.with_window(|window| {
            let before = window.len();
            window.drop_expired(now);
            self.budget.release((before - window.len()) * window::PAIR_BYTES);
            window.report(now)
        })
    }

    /// Returns the rules by which answers are compared.
    pub fn settings(&self) -> &ComparisonSettings {
        &self.settings
    }

    fn add_outcome(
        &self,
        window: &mut ComparisonWindow,
        pair: &ComparisonJob,
        outcome: ComparisonOutcome,
        differences: Vec<Difference>,
    ) {
        let (now, before) = (Instant::now(), window.len());
        let may_grow = self.budget.try_reserve(window::PAIR_BYTES);
        window.push(now, &pair.live, &pair.shadow, outcome, &differences, may_grow);
        if matches!(outcome, ComparisonOutcome::Different | ComparisonOutcome::StatusDiffers) {
            window.add_sample(now, pair.to_sample(differences));
        }
        self.budget.release((before + usize::from(may_grow) - window.len()) * window::PAIR_BYTES);
    }

    fn with_window<T>(&self, with: impl FnOnce(&mut ComparisonWindow) -> T) -> T {
        with(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for ComparisonResults {
    fn drop(&mut self) {
        let pairs = self.window.get_mut().unwrap_or_else(PoisonError::into_inner).len();
        self.budget.release(pairs * window::PAIR_BYTES);
    }
}

/// The two answers to one request, to be compared.
#[derive(Debug)]
pub struct ComparisonJob {
    /// Where the result is added.
    pub results: Arc<ComparisonResults>,
    /// The `x-request-id` of the request.
    pub request_id: String,
    /// The answer that the client got.
    pub live: CapturedAnswer,
    /// The answer of the shadow, which was discarded.
    pub shadow: CapturedAnswer,
    /// The memory reservations of both bodies, released after the comparison.
    pub memory: [MemoryReservation; 2],
}

impl ComparisonJob {
    fn to_sample(&self, differences: Vec<Difference>) -> DifferenceSample {
        DifferenceSample {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request_id: self.request_id.clone(),
            live_status: self.live.status(),
            shadow_status: self.shadow.status(),
            live_broke_off: self.live.is_truncated(),
            shadow_broke_off: self.shadow.is_truncated(),
            differences,
        }
    }
}

/// The queue through which workers submit pairs of answers.
#[derive(Debug)]
pub struct ComparisonQueue {
    jobs_tx: SyncSender<ComparisonJob>,
    metrics: Arc<Metrics>,
}

impl ComparisonQueue {
    /// Starts the thread, which ends when the returned queue is dropped and everything in it is compared.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(metrics: Arc<Metrics>) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (pairs, receiver) = sync_channel(QUEUE_CAPACITY);
        let counted = metrics.clone();
        let thread = std::thread::Builder::new()
            .name("compare".to_owned())
            .spawn(move || compare_queued(&receiver, &counted))?;
        Ok((Self { jobs_tx: pairs, metrics }, thread))
    }

    /// Submits two answers for comparison.
    pub fn submit(&self, pair: ComparisonJob) {
        if let Err(TrySendError::Full(pair) | TrySendError::Disconnected(pair)) = self.jobs_tx.try_send(pair) {
            let (compared, outcome) = (&pair.results, ComparisonOutcome::NotCompared(NotComparedReason::Busy));
            self.metrics.record_comparison(compared.endpoint.as_str(), outcome.as_str());
            // A reader may hold the lock to build a report. A worker must not wait for it, so only the metric counts
            // this pair.
            if let Ok(mut window) = compared.window.try_lock() {
                compared.add_outcome(&mut window, &pair, outcome, Vec::new());
            }
        }
    }
}

fn compare_queued(pairs: &Receiver<ComparisonJob>, metrics: &Metrics) {
    // On Linux this lowers the priority of the calling thread alone. Where it is not permitted, the rests limit the
    // thread.
    let _ = rustix::process::setpriority_process(None, THREAD_NICENESS);
    while let Ok(first) = pairs.recv() {
        let begun = Instant::now();
        let mut next = Some(first);
        while let Some(pair) = next {
            let compared = &pair.results;
            let (outcome, differences) = compare_answers(&pair.live, &pair.shadow, &compared.settings);
            metrics.record_comparison(compared.endpoint.as_str(), outcome.as_str());
            compared.with_window(|window| compared.add_outcome(window, &pair, outcome, differences));
            next = if begun.elapsed() < MAX_WORK_BURST { pairs.try_recv().ok() } else { None };
        }
        std::thread::sleep(begun.elapsed() * REST_FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compare::AnswerEnd;

    fn comparison_results() -> Arc<ComparisonResults> {
        let rules = ComparisonSettings {
            compare_bodies: true,
            max_body_bytes: 1_024,
            numeric_tolerance: 0.0,
            ignored_paths: Vec::new(),
            unordered_paths: Vec::new(),
        };
        let (endpoint, window) = (Name::new("my-endpoint").unwrap(), Mutex::new(ComparisonWindow::new(Instant::now())));
        Arc::new(ComparisonResults { endpoint, settings: rules, window, budget: ComparisonResults::new_budget() })
    }

    fn comparison_job(compared: &Arc<ComparisonResults>) -> ComparisonJob {
        let answer = || CapturedAnswer {
            end: AnswerEnd::Complete(200),
            latency: None,
            bytes: 0,
            body: Ok(Vec::new()),
            is_encoded: false,
        };
        let held = [(); 2].map(|()| MemoryReservation::new(Budget::new(0)));
        ComparisonJob {
            results: compared.clone(),
            request_id: String::new(),
            live: answer(),
            shadow: answer(),
            memory: held,
        }
    }

    #[test]
    fn a_worker_waits_neither_for_the_thread_nor_for_who_reads_a_report() {
        let metrics = Arc::new(Metrics::new().unwrap());
        // The receiver is never read, so the queue is always full.
        let (pairs, _receiver) = sync_channel(0);
        let (comparisons, compared) =
            (ComparisonQueue { jobs_tx: pairs, metrics: metrics.clone() }, comparison_results());
        let read = compared.window.lock().unwrap();
        comparisons.submit(comparison_job(&compared));
        drop(read);
        comparisons.submit(comparison_job(&compared));
        let report = compared.report();
        assert_eq!((report.pairs, report.not_compared["busy"]), (1, 1));
        let counted = metrics.registry.gather().into_iter().find(|family| family.name().ends_with("comparisons_total"));
        assert_eq!(counted.unwrap().get_metric()[0].get_counter().get_value(), 2.0, "the metric has both");
    }
}
