//! What the router decides for every request, without a socket: each should be far below the microseconds that moving
//! a request through the kernel costs, admission must not slow down with the number of replicas, and finding an
//! endpoint hardly with the number of endpoints.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use inference_router::control::documents;
use inference_router::control::index::{Desired, Index};
use inference_router::model::endpoint::Endpoint;
use inference_router::model::name::Name;
use inference_router::policy::access::{Access, KeyDigest};
use inference_router::policy::admit::{Admission, Arrival, Avoid, Rules};
use inference_router::policy::identify::{identify, lookup_key};
use inference_router::policy::split::Split;
use inference_router::state::metrics::Metrics;
use inference_router::state::table::{Published, Table};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// Replicas of a deployment: the smallest, a usual and the largest number.
const REPLICAS: [usize; 3] = [1, 10, 1000];
/// How long a request is said to have held its slot.
const HELD: Duration = Duration::from_millis(20);

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
                let called = identify(black_box(path));
                called.ok().and_then(|called| lookup_key(called.endpoint, &mut buffer).map(str::len))
            });
        });
    }
}

/// A published table of `endpoint-0`, `endpoint-1`, …
fn table(endpoints: usize) -> Arc<Table> {
    let document = "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {name: any}\nspec: \
                    {authMode: none, traffic: {blue: 100}, deployments: [{name: blue, instances: [\"127.0.0.1:1\"]}]}";
    let parsed = documents::parse(document, "the benchmark's document");
    let any = parsed.endpoints.into_iter().next().expect("the document is in order");
    let desired = (0..endpoints).map(|number| {
        let name = Name::new(&format!("endpoint-{number}")).expect("it is a name");
        Desired { spec: Arc::new(Endpoint { name, ..any.clone() }), access: Access::Open, tls: Vec::new() }
    });
    let published = Published::default();
    let metrics = Metrics::new().expect("its families are in order");
    Index::new(published.clone(), Arc::new(metrics), Arc::default()).apply(desired.collect());
    published.load_full()
}

/// Another endpoint each time, so that the table does not come out of the nearest cache.
fn look_up(c: &mut Criterion) {
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
                let called = paths.next().and_then(|path| identify(path).ok())?;
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
    let access = Access::Keys(keys.iter().map(|key| KeyDigest::of(key)).collect());
    let mut group = c.benchmark_group("access");
    for (name, header) in [
        ("primary", "Bearer primary-key-0123456789abcdef"),
        ("secondary", "Bearer secondary-key-0123456789abcdef"),
        ("wrong", "Bearer another-key-0123456789abcdef"),
    ] {
        group.bench_function(name, |b| b.iter(|| access.check(black_box(Some(header.as_bytes())))));
    }
    group.bench_function("missing", |b| b.iter(|| access.check(black_box(None))));
}

/// A deployment with two slots on each replica.
fn deployment(replicas: usize, queue_length: usize) -> Admission<u32> {
    let rules = Rules { per_replica: NonZeroU32::MIN.saturating_add(1), queue_length };
    let mut admission = Admission::new(rules);
    for _ in 0..replicas {
        admission.add();
    }
    admission
}

/// Requests that hold every slot but `free`; the last arrived last.
fn fill(admission: &mut Admission<u32>, replicas: usize, free: usize, deadline: Instant) {
    for _ in free..2 * replicas {
        assert!(matches!(admission.arrive(Avoid::default(), deadline, || 0), Arrival::Granted(_)));
    }
}

fn admission(c: &mut Criterion) {
    let (mut group, deadline) = (c.benchmark_group("admit"), Instant::now());
    for replicas in REPLICAS {
        let mut idle = deployment(replicas, 10_000);
        group.bench_function(BenchmarkId::new("arrive and release, idle", replicas), |b| {
            b.iter(|| {
                let Arrival::Granted(id) = idle.arrive(Avoid::default(), deadline, || 0) else {
                    panic!("a slot is free")
                };
                idle.release(id, HELD)
            });
        });
        let mut busy = deployment(replicas, 10_000);
        fill(&mut busy, replicas, 1, deadline);
        group.bench_function(BenchmarkId::new("arrive and release, one slot left", replicas), |b| {
            b.iter(|| {
                let Arrival::Granted(id) = busy.arrive(Avoid::default(), deadline, || 0) else {
                    panic!("a slot is free")
                };
                busy.release(id, HELD)
            });
        });
        let mut waiting = deployment(replicas, 10_000);
        let first = waiting.ids().next().expect("there is a replica");
        fill(&mut waiting, replicas, 0, deadline);
        for waiter in 0..5_000 {
            assert!(matches!(waiting.arrive(Avoid::default(), deadline, || waiter), Arrival::Queued(_)));
        }
        group.bench_function(BenchmarkId::new("release to the first of 5000, queue again", replicas), |b| {
            b.iter(|| {
                let (granted, _) = waiting.release(first, HELD);
                assert!(matches!(waiting.arrive(Avoid::default(), deadline, || 0), Arrival::Queued(_)));
                granted
            });
        });
        let mut full = deployment(replicas, 100);
        fill(&mut full, replicas, 0, deadline);
        while !matches!(full.arrive(Avoid::default(), deadline, || 0), Arrival::Full) {}
        group.bench_function(BenchmarkId::new("arrive at a full queue", replicas), |b| {
            b.iter(|| full.arrive(black_box(Avoid::default()), deadline, || 0));
        });
    }
}

criterion_group!(benches, identification, look_up, splitting, access, admission);
criterion_main!(benches);
