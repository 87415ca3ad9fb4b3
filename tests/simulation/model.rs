//! A naive model of admission: lists of queued requests and requests in flight, with every promise checked over all of
//! them.

use std::time::Duration;

use inference_router::policy::admit::{
    Admission, AdmissionOutcome, AdmissionRules, AvoidedReplicas, Occupancy, ReplicaId, Ticket,
};

use crate::{Checked, MILLISECOND, SECOND, Time, ensure};

/// Failures in a row that set a replica aside; the first and the longest time it is.
const FAILURES_TO_EJECT: u32 = 3;
const EJECTION_BACKOFF: (Time, Time) = (250 * MILLISECOND, 30 * SECOND);

/// A deployment, naively.
#[derive(Debug)]
pub(crate) struct Model {
    rules: AdmissionRules,
    /// Every replica there ever was; its number is its place.
    replicas: Vec<Replica>,
    /// In the order in which they are to be served.
    queue: Vec<QueuedRequest>,
    longest_held: Time,
}

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    presence: Presence,
    in_flight: Vec<usize>,
    failures: u32,
    availability: Availability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Present,
    Draining,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Availability {
    Available,
    Ejected(Time),
    Probing,
}

/// A request in the queue.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) request: usize,
    pub(crate) deadline: Time,
    ticket: Ticket,
    avoid: Vec<usize>,
}

impl Model {
    pub(crate) fn new(rules: AdmissionRules) -> Self {
        Self { rules, replicas: Vec::new(), queue: Vec::new(), longest_held: 0 }
    }

    /// Those in the queue, first to last.
    pub(crate) fn queued_requests(&self) -> &[QueuedRequest] {
        &self.queue
    }

    /// Those that hold a slot.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = usize> {
        self.replicas.iter().flat_map(|replica| &replica.in_flight).copied()
    }

    /// Requests that all replicas together may have in flight now.
    pub(crate) fn slots(&self) -> usize {
        self.replicas.iter().map(|replica| replica.cap(self.rules)).sum()
    }

    /// The number of the replica that `id` means, and never another one.
    pub(crate) fn number(&self, id: ReplicaId) -> Checked<usize> {
        let found = self.replicas.iter().position(|replica| replica.id == id);
        found.ok_or_else(|| format!("{id:?} was never given"))
    }

    pub(crate) fn id(&self, replica: usize) -> ReplicaId {
        self.replicas[replica].id
    }

    /// The replicas that are to be used, or those on their way out.
    pub(crate) fn replicas_by_presence(&self, wanted: bool) -> Vec<usize> {
        let presence = if wanted { Presence::Present } else { Presence::Draining };
        (0..self.replicas.len()).filter(|replica| self.replicas[*replica].presence == presence).collect()
    }

    pub(crate) fn add_replica(&mut self, id: ReplicaId) -> Checked {
        let (presence, fitness) = (Presence::Present, Availability::Available);
        ensure(self.number(id).is_err(), || format!("{id:?} was given twice"))?;
        self.replicas.push(Replica { id, presence, in_flight: Vec::new(), failures: 0, availability: fitness });
        Ok(())
    }

    pub(crate) fn remove_replica(&mut self, replica: usize, gone: bool) -> Checked {
        self.replicas[replica].presence = Presence::Draining;
        self.check_gone(replica, gone)
    }

    pub(crate) fn restore_replica(&mut self, replica: usize) {
        self.replicas[replica].presence = Presence::Present;
    }

    pub(crate) fn set_rules(&mut self, rules: AdmissionRules) {
        self.rules = rules;
    }

    pub(crate) fn check_arrival(
        &mut self,
        request: usize,
        avoid: &[usize],
        deadline: Time,
        arrival: &AdmissionOutcome,
    ) -> Checked {
        match arrival {
            AdmissionOutcome::Granted(id) => {
                let replica = self.number(*id)?;
                let passed_over = self.queue.iter().find(|waiter| !waiter.avoid.contains(&replica));
                if let Some(waiter) = passed_over {
                    return Err(format!("request {request} overtakes {} on replica {replica}", waiter.request));
                }
                self.occupy_slot(request, replica, avoid)
            }
            AdmissionOutcome::Queued(ticket) => {
                // Those that were tried before go before those that were not, and behind each other.
                let repeated = |avoid: &[usize]| !avoid.is_empty();
                let ahead = self.queue.iter().filter(|waiter| repeated(&waiter.avoid) || !repeated(avoid)).count();
                let waiter = QueuedRequest { request, deadline, ticket: *ticket, avoid: avoid.to_vec() };
                self.queue.insert(ahead, waiter);
                let length = self.queue.len();
                ensure(repeated(avoid) || length <= self.rules.queue_length, || format!("{length} wait"))
            }
            AdmissionOutcome::Full => {
                let full = avoid.is_empty() && self.queue.len() >= self.rules.queue_length;
                ensure(full, || format!("request {request} turned away, but {} wait", self.queue.len()))?;
                let free = self.free_replicas_for(avoid).next();
                ensure(free.is_none(), || format!("request {request} turned away, but {free:?} is free"))
            }
        }
    }

    /// Checks that a queued request may get this slot.
    pub(crate) fn check_grant(&mut self, request: usize, replica: usize) -> Checked {
        let first = self.queue.iter().position(|waiter| !waiter.avoid.contains(&replica));
        let Some(place) = first.filter(|place| self.queue[*place].request == request) else {
            let first = first.map(|place| self.queue[place].request);
            return Err(format!("request {request} gets a slot of replica {replica}, but {first:?} was first"));
        };
        let waiter = self.queue.remove(place);
        self.occupy_slot(request, replica, &waiter.avoid)
    }

    fn occupy_slot(&mut self, request: usize, replica: usize, avoid: &[usize]) -> Checked {
        let Replica { presence, availability: fitness, in_flight, .. } = &self.replicas[replica];
        ensure(!avoid.contains(&replica), || format!("request {request} goes back to replica {replica}"))?;
        let (limit, load) = (self.replicas[replica].cap(self.rules), in_flight.len());
        ensure(load < limit, || {
            format!("replica {replica}, {presence:?} and {fitness:?}, gets one more than {load}, may have {limit}")
        })?;
        let least = self.free_replicas_for(avoid).map(|free| self.replicas[free].in_flight.len()).min();
        ensure(least == Some(load), || format!("replica {replica} with {load} is taken, not one with {least:?}"))?;
        self.replicas[replica].in_flight.push(request);
        Ok(())
    }

    /// A waiter has left with its ticket; `left` is who left by it.
    pub(crate) fn check_leave(&mut self, request: usize, ticket: Ticket, left: Option<usize>) -> Checked {
        let place = self.queue.iter().position(|waiter| waiter.request == request && waiter.ticket == ticket);
        ensure(left == place.map(|_| request), || format!("request {request} left, and {left:?} left the queue"))?;
        if let Some(place) = place {
            self.queue.remove(place);
        }
        Ok(())
    }

    pub(crate) fn check_release(&mut self, request: usize, replica: usize, held: Time, gone: bool) -> Checked {
        let in_flight = &mut self.replicas[replica].in_flight;
        let place = in_flight.iter().position(|other| *other == request);
        in_flight.swap_remove(place.ok_or_else(|| format!("request {request} is not on replica {replica}"))?);
        self.longest_held = self.longest_held.max(held);
        self.check_gone(replica, gone)
    }

    fn check_gone(&mut self, replica: usize, gone: bool) -> Checked {
        let Replica { presence, in_flight, .. } = &mut self.replicas[replica];
        let idle = *presence == Presence::Draining && in_flight.is_empty();
        if idle {
            *presence = Presence::Gone;
        }
        ensure(gone == idle, || format!("replica {replica} said to be gone: {gone}"))
    }

    pub(crate) fn succeeded(&mut self, replica: usize) {
        let replica = &mut self.replicas[replica];
        (replica.failures, replica.availability) = (0, Availability::Available);
    }

    /// A replica failed; `until` is when it may be probed, if it is said to be set aside by that.
    pub(crate) fn failed(&mut self, replica: usize, now: Time, until: Option<Time>) -> Checked {
        let Replica { failures, availability: fitness, .. } = &mut self.replicas[replica];
        let mut expected = None;
        if !matches!(fitness, Availability::Ejected(_)) {
            *failures += 1;
            if *failures >= FAILURES_TO_EJECT {
                let doubled = (*failures - FAILURES_TO_EJECT).min(20);
                let back_off = (EJECTION_BACKOFF.0 << doubled).min(EJECTION_BACKOFF.1);
                *fitness = Availability::Ejected(now + back_off);
                expected = Some(now + back_off);
            }
        }
        ensure(until == expected, || format!("replica {replica} aside until {until:?}, not {expected:?}"))
    }

    pub(crate) fn apply_tick(&mut self, now: Time) {
        for replica in &mut self.replicas {
            if matches!(replica.availability, Availability::Ejected(until) if until <= now) {
                replica.availability = Availability::Probing;
            }
        }
    }

    /// What one that is turned away now is told: the earliest probe if nothing can be used; otherwise no later than that
    /// all who wait have left and a slot has come back, had it been held as long as any ever was.
    pub(crate) fn check_retry_after(&self, now: Time, retry_after: Time) -> Checked {
        let (least, most) = match self.slots() as Time {
            0 => {
                let wanted = self.replicas.iter().filter(|replica| replica.presence == Presence::Present);
                let probes = wanted.filter_map(|replica| match replica.availability {
                    Availability::Ejected(until) => Some(until.saturating_sub(now)),
                    _ => None,
                });
                let probe = probes.min().unwrap_or_default().max(SECOND);
                (probe, probe)
            }
            slots => {
                let all_left = self.queue.iter().map(|waiter| waiter.deadline - now).max().unwrap_or_default();
                (SECOND, SECOND.max(all_left + self.longest_held / slots + 1))
            }
        };
        ensure((least..=most).contains(&retry_after), || {
            format!("told to wait {retry_after}, not from {least} to {most}")
        })
    }

    /// After every step, whatever it was: nobody waits in vain, and the state machine says of itself what is true.
    pub(crate) fn check_invariants(&self, admission: &Admission<usize>) -> Checked {
        if self.free_replicas_for(&[]).next().is_some() {
            for QueuedRequest { request, avoid, .. } in &self.queue {
                let free = self.free_replicas_for(avoid).next();
                ensure(free.is_none(), || format!("request {request} waits beside free replica {free:?}"))?;
            }
        }
        for QueuedRequest { request, avoid, .. } in self.queue.iter().filter(|waiter| !waiter.avoid.is_empty()) {
            let mut ids = AvoidedReplicas::default();
            avoid.iter().for_each(|replica| ids.insert(self.id(*replica)));
            let usable = |(number, replica): (usize, &Replica)| replica.cap(self.rules) > 0 && !avoid.contains(&number);
            let hope = self.replicas.iter().enumerate().any(usable);
            ensure(admission.has_ready_replica_except(ids) == hope, || {
                format!("request {request} is not to hope: {hope}")
            })?;
        }
        let mut expected = Occupancy { waiting: self.queue.len(), ..Occupancy::default() };
        for (number, replica) in self.replicas.iter().enumerate() {
            let (limit, busy) = (replica.cap(self.rules), replica.in_flight.len());
            match replica.presence {
                Presence::Gone => continue,
                Presence::Draining => {
                    expected.draining += 1;
                    expected.busy_draining += busy;
                }
                Presence::Present => {
                    expected.busy += busy;
                    expected.free += limit.saturating_sub(busy);
                    *(if limit > 0 { &mut expected.ready } else { &mut expected.ejected }) += 1;
                }
            }
            let said = admission.replica_load(replica.id).0 as usize;
            ensure(said == busy, || format!("replica {number} is said to have {said} in flight, not {busy}"))?;
        }
        let occupancy = admission.occupancy();
        ensure(occupancy == expected, || format!("{occupancy:?}, not {expected:?}"))?;
        ensure(admission.has_ready_replica() == (expected.ready > 0), || "any_ready is wrong".to_owned())
    }

    /// Replicas with a slot that a request avoiding `avoid` could have now.
    fn free_replicas_for(&self, avoid: &[usize]) -> impl Iterator<Item = usize> {
        let free = self.replicas.iter().enumerate().filter(|(_, one)| one.in_flight.len() < one.cap(self.rules));
        free.map(|(number, _)| number).filter(move |number| !avoid.contains(number))
    }
}

impl Replica {
    fn cap(&self, rules: AdmissionRules) -> usize {
        match (self.presence, self.availability) {
            (Presence::Present, Availability::Available) => rules.replica_cap.get() as usize,
            (Presence::Present, Availability::Probing) => 1,
            _ => 0,
        }
    }
}

/// Whole microseconds: all the simulation knows.
pub(crate) fn micros(duration: Duration) -> Time {
    duration.as_micros() as Time
}
