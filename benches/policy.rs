//! What the router decides for every request, without a socket: each should be far below the microseconds that moving
//! a request through the kernel costs, admission must not slow down with the number of replicas, and finding an
//! endpoint hardly with the number of endpoints.

use std::collections::{BTreeSet, VecDeque};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use inference_router::control::documents;
use inference_router::control::index::{DesiredEndpoint, Index};
use inference_router::model::endpoint::Endpoint;
use inference_router::model::name::Name;
use inference_router::policy::access::{Access, KeyDigest};
use inference_router::policy::admit::{Admission, AdmissionOutcome, AdmissionRules, AvoidedReplicas};
use inference_router::policy::fleet::ledger::{Ledger, PreviousHolders};
use inference_router::policy::fleet::{
    FleetReplicaKey, FleetTiming, Heartbeat, Hello, MemberId, MemberReport, SlotDemand, Term, ToCoordinator, ToMember,
};
use inference_router::policy::identify::{lookup_key, parse_endpoint_path};
use inference_router::policy::signing::TokenSigner;
use inference_router::policy::split::Split;
use inference_router::policy::token::ParsedToken;
use inference_router::state::metrics::Metrics;
use inference_router::state::routing_table::{PublishedTable, RoutingTable};
use inference_router::state::tokens::VerifiedTokenCache;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// Replicas of a deployment: the smallest, a usual and the largest number.
const REPLICAS: [usize; 3] = [1, 10, 1000];
/// How long a request is said to have held its slot.
const SLOT_HOLD_TIME: Duration = Duration::from_millis(20);

fn identification(c: &mut Criterion) {
    let mut group = c.benchmark_group("identify");
    for (name, path) in [
        ("score", "/api/v1/endpoint/My-Endpoint/score"),
        ("path", "/api/v1/endpoint/my-endpoint/v1/chat/completions"),
        ("path with percent", "/api/v1/endpoint/my-endpoint/v2/models/a%20b/infer"),
        ("none", "/favicon.ico"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut buffer = [0; 32];
                let called = parse_endpoint_path(black_box(path));
                called.ok().and_then(|called| lookup_key(called.endpoint, &mut buffer).map(str::len))
            });
        });
    }
}

/// A published table of `endpoint-0`, `endpoint-1`, …
fn table(endpoints: usize) -> Arc<RoutingTable> {
    let document = "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {name: any}\nspec: \
                    {authMode: none, traffic: {blue: 100}, deployments: [{name: blue, instances: [\"127.0.0.1:1\"]}]}";
    let parsed = documents::parse(document, "the benchmark's document");
    let any = parsed.endpoints.into_iter().next().expect("the document is in order");
    let desired = (0..endpoints).map(|number| {
        let name = Name::new(&format!("endpoint-{number}")).expect("it is a name");
        DesiredEndpoint {
            spec: Arc::new(Endpoint { name, ..any.clone() }),
            access: Access::Open,
            connectors: Vec::new(),
        }
    });
    let published = PublishedTable::default();
    let metrics = Metrics::new().expect("its families are in order");
    Index::new(published.clone(), Arc::new(metrics), Arc::default(), Arc::default())
        .replace_endpoints(desired.collect());
    published.load_full()
}

/// Another endpoint each time, so that the table does not come out of the nearest cache.
fn bench_table_lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("look up among");
    for endpoints in [1, 100, 10_000] {
        let table = table(endpoints);
        let mut paths: Vec<_> =
            (0..endpoints).map(|number| format!("/api/v1/endpoint/Endpoint-{number}/score")).collect();
        paths.shuffle(&mut SmallRng::seed_from_u64(7));
        let mut paths = paths.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
            b.iter(|| {
                let mut buffer = [0; 32];
                let called = paths.next().and_then(|path| parse_endpoint_path(path).ok())?;
                let found = lookup_key(called.endpoint, &mut buffer).and_then(|key| table.endpoint(key).cloned());
                assert!(found.is_some());
                found
            });
        });
    }
}

fn splitting(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    for (name, percents) in [("one", &[100][..]), ("90/10", &[90, 10]), ("twenty", &[5; 20])] {
        let (split, mut rng) = (Split::new(percents), SmallRng::seed_from_u64(7));
        group.bench_function(name, |b| b.iter(|| split.choose(black_box(&mut rng))));
    }
}

fn access(c: &mut Criterion) {
    let keys = ["primary-key-0123456789abcdef", "secondary-key-0123456789abcdef"];
    let access = Access::Keys(keys.iter().map(|key| KeyDigest::digest_key(key)).collect());
    let mut group = c.benchmark_group("access");
    for (name, header) in [
        ("primary", "Bearer primary-key-0123456789abcdef"),
        ("secondary", "Bearer secondary-key-0123456789abcdef"),
        ("wrong", "Bearer another-key-0123456789abcdef"),
    ] {
        group.bench_function(name, |b| b.iter(|| access.authenticate(black_box(Some(header.as_bytes())))));
    }
    group.bench_function("missing", |b| b.iter(|| access.authenticate(black_box(None))));
}

/// What a token costs that is known to be good, beside a key, and what one costs that is not.
fn tokens(c: &mut Criterion) {
    let mut group = c.benchmark_group("token");
    let (ed, ec): (Pkcs8V1Der<'_>, _) = (
        Ed25519KeyPair::generate().and_then(|pair| pair.as_der()).expect("a key"),
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).and_then(|pair| pair.to_pkcs8v1()).expect("a key"),
    );
    for (name, der) in [("EdDSA", ed.as_ref()), ("ES256", ec.as_ref())] {
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", STANDARD.encode(der));
        let signing = TokenSigner::new("router", Duration::from_secs(60), pem.as_bytes(), &[]).expect("a signing key");
        let token = signing.issue("my-endpoint", "somebody", 0, None).expect("a token").token;
        let good = VerifiedTokenCache::default();
        good.insert(good.digest(1, &token), good.key_generation(), 60, "somebody".into(), 0);
        group.bench_function(format!("{name}, known"), |b| {
            b.iter(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / u64::MAX);
                let subject = good.get(good.digest(1, black_box(&token)), now);
                assert!(subject.is_some());
                subject
            });
        });
        group.bench_function(format!("{name}, new"), |b| {
            b.iter(|| {
                let token = ParsedToken::parse(black_box(&token)).expect("a token");
                assert!(
                    token
                        .verify(signing.keys())
                        .is_ok_and(|claims| claims.authorize_endpoint("my-endpoint", 0).is_ok())
                );
            });
        });
        group.bench_function(format!("{name}, forged"), |b| {
            let forged = format!("{}AAAA", &token[..token.len() - 4]);
            b.iter(|| {
                let token = ParsedToken::parse(black_box(&forged)).expect("a token");
                assert!(token.verify(signing.keys()).is_err());
            });
        });
    }
}

/// A deployment with two slots on each replica.
fn idle_admission(replicas: usize, queue_length: usize) -> Admission<u32> {
    let rules = AdmissionRules { replica_cap: NonZeroU32::MIN.saturating_add(1), queue_length };
    let mut admission = Admission::new(rules);
    for _ in 0..replicas {
        admission.add_replica();
    }
    admission
}

/// Requests that hold every slot but `free`; the last arrived last.
fn fill_slots(admission: &mut Admission<u32>, replicas: usize, free: usize, deadline: Instant) {
    for _ in free..2 * replicas {
        assert!(matches!(
            admission.request_slot(AvoidedReplicas::default(), deadline, deadline, || 0),
            AdmissionOutcome::Granted(_)
        ));
    }
}

fn admission(c: &mut Criterion) {
    let (mut group, deadline) = (c.benchmark_group("admit"), Instant::now());
    for replicas in REPLICAS {
        let mut idle = idle_admission(replicas, 10_000);
        group.bench_function(BenchmarkId::new("arrive and release, idle", replicas), |b| {
            b.iter(|| {
                let AdmissionOutcome::Granted(id) =
                    idle.request_slot(AvoidedReplicas::default(), deadline, deadline, || 0)
                else {
                    panic!("a slot is free")
                };
                idle.release_slot(id, SLOT_HOLD_TIME)
            });
        });
        let mut busy = idle_admission(replicas, 10_000);
        fill_slots(&mut busy, replicas, 1, deadline);
        group.bench_function(BenchmarkId::new("arrive and release, one slot left", replicas), |b| {
            b.iter(|| {
                let AdmissionOutcome::Granted(id) =
                    busy.request_slot(AvoidedReplicas::default(), deadline, deadline, || 0)
                else {
                    panic!("a slot is free")
                };
                busy.release_slot(id, SLOT_HOLD_TIME)
            });
        });
        let mut waiting = idle_admission(replicas, 10_000);
        let first = waiting.replica_ids().next().expect("there is a replica");
        fill_slots(&mut waiting, replicas, 0, deadline);
        for waiter in 0..5_000 {
            assert!(matches!(
                waiting.request_slot(AvoidedReplicas::default(), deadline, deadline, || waiter),
                AdmissionOutcome::Queued(_)
            ));
        }
        group.bench_function(BenchmarkId::new("release to the first of 5000, queue again", replicas), |b| {
            b.iter(|| {
                let (granted, _) = waiting.release_slot(first, SLOT_HOLD_TIME);
                assert!(matches!(
                    waiting.request_slot(AvoidedReplicas::default(), deadline, deadline, || 0),
                    AdmissionOutcome::Queued(_)
                ));
                granted
            });
        });
        let mut full = idle_admission(replicas, 100);
        fill_slots(&mut full, replicas, 0, deadline);
        while !matches!(full.request_slot(AvoidedReplicas::default(), deadline, deadline, || 0), AdmissionOutcome::Full)
        {
        }
        group.bench_function(BenchmarkId::new("arrive at a full queue", replicas), |b| {
            b.iter(|| full.request_slot(black_box(AvoidedReplicas::default()), deadline, deadline, || 0));
        });
    }
}

/// A coordinator whose slots are all leased, to members that all have more requests waiting than they can serve.
struct OverloadedLedger {
    ledger: Ledger,
    now: Instant,
    members: Vec<MemberId>,
    /// Slots that each has been granted, and beats that it has sent.
    granted: Vec<u64>,
    heartbeats: Vec<u64>,
    /// Who has which slot, the longest held first.
    held_slots: VecDeque<(usize, FleetReplicaKey)>,
}

impl OverloadedLedger {
    fn new(members: usize, replicas: usize) -> Self {
        let now = Instant::now();
        let mut ledger = Ledger::new(FleetTiming::default());
        ledger.begin_term(Term(1), now + Duration::from_secs(1 << 30), PreviousHolders::Known(BTreeSet::new()), now);
        for number in 0..replicas {
            let key =
                FleetReplicaKey { deployment: Arc::from("blue"), name: Arc::from(format!("10.0.0.{number}:8080")) };
            ledger.set_replica(&key, 1, Duration::from_secs(30), now);
        }
        let members: Vec<_> = (0..members)
            .map(|number| MemberId { name: Arc::from(format!("router-{number}")), incarnation: 1 })
            .collect();
        let (granted, beats) = (vec![0; members.len()], vec![1; members.len()]);
        let mut overload = Self { ledger, now, members, granted, heartbeats: beats, held_slots: VecDeque::new() };
        for member in 0..overload.members.len() {
            let (claims, barred, demand) = (Vec::new(), Vec::new(), vec![overload.demand(member)]);
            let hello =
                Hello { term: Term(1), session: 1, heartbeat: 1, claims, unusable: barred, demand, loads: Vec::new() };
            overload.ledger.receive(&overload.members[member], ToCoordinator::Hello(hello), now);
        }
        while overload.held_slots.len() < replicas {
            overload.take_grants();
        }
        overload
    }

    fn demand(&self, member: usize) -> SlotDemand {
        let (oldest, newest) = (Duration::from_millis(50), Duration::ZERO);
        SlotDemand {
            deployment: Arc::from("blue"),
            queued: 2000,
            oldest_age: oldest,
            newest_age: newest,
            grants_seen: self.granted[member],
        }
    }

    /// Takes what is granted, and says that it has arrived: before that there is no more.
    fn take_grants(&mut self) {
        let mut updated = BTreeSet::new();
        for (to, message) in self.ledger.outgoing(self.now) {
            let ToMember::Update(update) = message else { continue };
            let Some(to) = self.members.iter().position(|member| *member == to) else { continue };
            for (key, slots) in update.granted {
                self.granted[to] += u64::from(slots);
                self.held_slots.extend((0..slots).map(|_| (to, key.clone())));
                updated.insert(to);
            }
        }
        for member in updated {
            self.send_report(member, None, Vec::new());
        }
    }

    fn send_report(&mut self, member: usize, heartbeat: Option<Heartbeat>, returned: Vec<(FleetReplicaKey, u32)>) {
        let (barred, demand) = (Vec::new(), vec![self.demand(member)]);
        let report = MemberReport {
            term: Term(1),
            session: 1,
            heartbeat,
            returned,
            unusable_changes: barred,
            demand,
            loads: Vec::new(),
        };
        self.ledger.receive(&self.members[member], ToCoordinator::Report(report), self.now);
    }

    /// So many slots come back, each in a message of its own; then all are granted again.
    fn move_slots(&mut self, count: usize) {
        for _ in 0..count {
            let (member, key) = self.held_slots.pop_front().expect("all slots are leased");
            self.now += Duration::from_micros(50);
            self.heartbeats[member] += 1;
            let heartbeat =
                Some(Heartbeat { number: self.heartbeats[member], last_answered: self.heartbeats[member] - 1 });
            self.send_report(member, heartbeat, vec![(key, 1)]);
        }
        self.take_grants();
    }
}

/// Slots that go from one member to another, as they do at the end of a request when another has waited longer elsewhere.
fn bench_slot_moves(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    for (members, replicas) in [(3, 10), (3, 1000), (20, 1000), (100, 1000)] {
        for count in [1, 10] {
            let mut overload = OverloadedLedger::new(members, replicas);
            group.throughput(Throughput::Elements(count as u64));
            let name = format!("{members} members, {count} at a time");
            group.bench_function(BenchmarkId::new(name, replicas), |b| b.iter(|| overload.move_slots(count)));
        }
    }
}

criterion_group!(benches, identification, bench_table_lookup, splitting, access, tokens, admission, bench_slot_moves);
criterion_main!(benches);
