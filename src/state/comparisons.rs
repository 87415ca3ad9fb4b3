//! Comparing the answers to copied requests, off the data plane: workers hand both answers to one thread, which has little
//! to say in the process and takes a quarter of a CPU at most. What is more than it can do is not compared, and counted; a
//! worker never waits for it.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::metrics::Metrics;
use super::mirror::{Budget, Held, Mirror};
use super::table::Deployment;
use crate::model::endpoint::{self, Comparison};
use crate::model::name::Name;
use crate::policy::compare::window::{self, Window};
use crate::policy::compare::{Answer, Difference, Gap, Outcome, Report, Sample, judge};

/// Pairs of answers that may wait.
const WAITING: usize = 1024;
/// Memory for the pairs of all endpoints together: 32 MiB. Places and samples, which are few for each endpoint and short,
/// come on top.
const MEMORY: usize = 32 << 20;
/// After some work the thread rests so many times as long.
const REST: u32 = 3;
/// It works so long at a time.
const TURN: Duration = Duration::from_millis(2);
/// Lowered priority, as of `nice`.
const NICE: i32 = 10;

/// What comparing an endpoint's answers has shown.
#[derive(Debug)]
pub struct Compared {
    endpoint: Name,
    rules: Comparison,
    window: Mutex<Window>,
    memory: Arc<Budget>,
}

impl Compared {
    /// Memory for all of them.
    pub fn memory() -> Arc<Budget> {
        Budget::new(MEMORY)
    }

    /// For a mirror: what there was `before` if the same is compared, and by the same rules, or else nothing yet.
    pub fn kept(
        before: Option<&Mirror>,
        endpoint: &Name,
        to: &Deployment,
        settings: &endpoint::Mirror,
        memory: &Arc<Budget>,
    ) -> Option<Arc<Self>> {
        let rules = settings.comparison.as_ref()?;
        let same = before.filter(|before| before.to.spec.name == to.spec.name);
        let kept = same.and_then(|before| before.compared.as_ref()).filter(|kept| kept.rules == *rules);
        let new = || {
            let window = Mutex::new(Window::new(Instant::now()));
            Arc::new(Self { endpoint: endpoint.clone(), rules: rules.clone(), window, memory: memory.clone() })
        };
        Some(kept.cloned().unwrap_or_else(new))
    }

    /// What they come to by now.
    pub fn report(&self) -> Report {
        let now = Instant::now();
        self.with_window(|window| {
            let before = window.len();
            window.forget(now);
            self.memory.give((before - window.len()) * window::PAIR_BYTES);
            window.report(now)
        })
    }

    /// How answers are compared.
    pub fn rules(&self) -> &Comparison {
        &self.rules
    }

    fn note(&self, window: &mut Window, pair: &Pair, outcome: Outcome, differences: Vec<Difference>) {
        let (now, before) = (Instant::now(), window.len());
        let may_grow = self.memory.take(window::PAIR_BYTES);
        window.push(now, &pair.live, &pair.shadow, outcome, &differences, may_grow);
        if matches!(outcome, Outcome::Different | Outcome::StatusDiffers) {
            window.sample(now, pair.sample(differences));
        }
        self.memory.give((before + usize::from(may_grow) - window.len()) * window::PAIR_BYTES);
    }

    fn with_window<T>(&self, with: impl FnOnce(&mut Window) -> T) -> T {
        with(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Compared {
    fn drop(&mut self) {
        let pairs = self.window.get_mut().unwrap_or_else(PoisonError::into_inner).len();
        self.memory.give(pairs * window::PAIR_BYTES);
    }
}

/// Two answers to one request.
#[derive(Debug)]
pub struct Pair {
    /// Whose request it was.
    pub compared: Arc<Compared>,
    /// As in `x-request-id`.
    pub request_id: String,
    /// What the client got.
    pub live: Answer,
    /// What nobody got.
    pub shadow: Answer,
    /// The memory of both.
    pub held: [Held; 2],
}

impl Pair {
    fn sample(&self, differences: Vec<Difference>) -> Sample {
        Sample {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request_id: self.request_id.clone(),
            live_status: self.live.status(),
            shadow_status: self.shadow.status(),
            live_broke_off: self.live.broke_off(),
            shadow_broke_off: self.shadow.broke_off(),
            differences,
        }
    }
}

/// Where workers send pairs of answers.
#[derive(Debug)]
pub struct Comparisons {
    pairs: SyncSender<Pair>,
    metrics: Arc<Metrics>,
}

impl Comparisons {
    /// Starts the thread; it ends when the result is gone and everything is compared.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(metrics: Arc<Metrics>) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (pairs, receiver) = sync_channel(WAITING);
        let counted = metrics.clone();
        let thread = std::thread::Builder::new().name("compare".to_owned()).spawn(move || work(&receiver, &counted))?;
        Ok((Self { pairs, metrics }, thread))
    }

    /// Hands over two answers.
    pub fn compare(&self, pair: Pair) {
        if let Err(TrySendError::Full(pair) | TrySendError::Disconnected(pair)) = self.pairs.try_send(pair) {
            let (compared, outcome) = (&pair.compared, Outcome::NotCompared(Gap::Busy));
            self.metrics.compared(compared.endpoint.as_str(), outcome.word());
            // Somebody may be reading all of it, and this is a worker: the metric has to do then.
            if let Ok(mut window) = compared.window.try_lock() {
                compared.note(&mut window, &pair, outcome, Vec::new());
            }
        }
    }
}

fn work(pairs: &Receiver<Pair>, metrics: &Metrics) {
    // Of this thread alone, on Linux; elsewhere it may not be had, and the rests must do.
    let _ = rustix::process::setpriority_process(None, NICE);
    while let Ok(first) = pairs.recv() {
        let begun = Instant::now();
        let mut next = Some(first);
        while let Some(pair) = next {
            let compared = &pair.compared;
            let (outcome, differences) = judge(&pair.live, &pair.shadow, &compared.rules);
            metrics.compared(compared.endpoint.as_str(), outcome.word());
            compared.with_window(|window| compared.note(window, &pair, outcome, differences));
            next = if begun.elapsed() < TURN { pairs.try_recv().ok() } else { None };
        }
        std::thread::sleep(begun.elapsed() * REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compare::End;

    fn compared() -> Arc<Compared> {
        let rules = Comparison {
            compare_bodies: true,
            max_body: 1_024,
            numeric_tolerance: 0.0,
            ignore: Vec::new(),
            unordered: Vec::new(),
        };
        let (endpoint, window) = (Name::new("my-endpoint").unwrap(), Mutex::new(Window::new(Instant::now())));
        Arc::new(Compared { endpoint, rules, window, memory: Compared::memory() })
    }

    fn pair(compared: &Arc<Compared>) -> Pair {
        let answer =
            || Answer { end: End::Complete(200), latency: None, bytes: 0, body: Ok(Vec::new()), is_encoded: false };
        let held = [(); 2].map(|()| Held::new(Budget::new(0)));
        Pair { compared: compared.clone(), request_id: String::new(), live: answer(), shadow: answer(), held }
    }

    #[test]
    fn a_worker_waits_neither_for_the_thread_nor_for_who_reads_a_report() {
        let metrics = Arc::new(Metrics::new().unwrap());
        // Nobody takes any.
        let (pairs, _receiver) = sync_channel(0);
        let (comparisons, compared) = (Comparisons { pairs, metrics: metrics.clone() }, compared());
        let read = compared.window.lock().unwrap();
        comparisons.compare(pair(&compared));
        drop(read);
        comparisons.compare(pair(&compared));
        let report = compared.report();
        assert_eq!((report.pairs, report.not_compared["busy"]), (1, 1));
        let counted = metrics.registry.gather().into_iter().find(|family| family.name().ends_with("comparisons_total"));
        assert_eq!(counted.unwrap().get_metric()[0].get_counter().get_value(), 2.0, "the metric has both");
    }
}
