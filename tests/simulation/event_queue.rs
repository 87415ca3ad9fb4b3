//! Planned events in the order of their time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Time;

/// Something that happens at a moment. Requests and replicas are meant by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A client sends a request.
    Arrival,
    /// What a request waits for, in its `step`; stale when it has gone on since.
    Request { request: usize, generation: u32, event: RequestEvent },
    /// The client goes away, wherever its request is.
    Abort(usize),
    /// A backoff is over.
    Tick,
    /// A replica stops: its connections break, new ones fail.
    Dies(usize),
    /// It runs again.
    Revives(usize),
    /// Somebody changes the deployment.
    Change,
}

/// What becomes of a request in flight or in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequestEvent {
    /// The longest wait in the queue is over.
    QueueWaitOver,
    /// The client's task notices that it was granted a slot.
    NoticesGrant,
    /// The attempt to connect has an outcome.
    Connects,
    /// The response head comes.
    Answers,
    /// The last byte of the response comes.
    Ends,
    /// The replica closes the connection in the middle.
    BreaksOff,
    /// The replica has had its time.
    TimeoutPasses,
}

/// Events in the order of their time; those at the same time in the order in which they were planned.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    heap: BinaryHeap<Reverse<(Time, u64, Event)>>,
    planned: u64,
}

impl EventQueue {
    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.planned += 1;
        self.heap.push(Reverse((at, self.planned, event)));
    }

    pub(crate) fn next(&mut self) -> Option<(Time, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
