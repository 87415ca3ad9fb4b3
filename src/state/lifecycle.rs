//! The lifecycle phase of the process, as a value that every task can watch.

use tokio::sync::watch;

/// Phases of the process, in the only order in which they occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifecyclePhase {
    /// The router is starting and not ready yet.
    Starting,
    /// The router is ready and serves requests.
    Serving,
    /// The router was told to stop. It still accepts requests, so that load balancers can notice that it is not ready.
    Unready,
    /// No new connection is accepted; requests in flight may finish.
    Draining,
    /// Requests that are still in flight are cut.
    Forced,
}

/// Moves the process from phase to phase. Clones share the same state.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    phase: watch::Sender<LifecyclePhase>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: watch::Sender::new(LifecyclePhase::Starting) }
    }
}

impl Lifecycle {
    /// Returns the current phase.
    pub fn phase(&self) -> LifecyclePhase {
        *self.phase.borrow()
    }

    /// Enters `phase`, unless a later phase has been entered before.
    pub fn enter(&self, phase: LifecyclePhase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Waits until `phase` or a later phase has been entered.
    pub async fn wait_for_phase(&self, phase: LifecyclePhase) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let lifecycle = Lifecycle::default();
        lifecycle.enter(LifecyclePhase::Draining);
        lifecycle.enter(LifecyclePhase::Serving);
        assert_eq!(lifecycle.phase(), LifecyclePhase::Draining);
        lifecycle.wait_for_phase(LifecyclePhase::Unready).await;
    }
}
