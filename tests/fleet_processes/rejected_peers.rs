//! Peers that a fleet accepts or rejects.

use crate::authority::Authority;
use crate::fleet::{FleetSetup, PeerSettings, RouterFleet, check, settings};
use crate::router::Router;
use crate::{POLL_INTERVAL, SLOT_LEASE};

const FLEET_SECRET: &str = "what every router of the group knows";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_with_certificates_and_a_secret_are_one_and_nobody_else_is_let_in() {
    let mut group = RouterFleet::without_routers(FleetSetup::default()).await;
    let (authority, unknown) = (Authority::new(), Authority::new());
    let own = |name: &str, group: &RouterFleet| {
        PeerSettings::with_tls(group, name, &authority.sign(&["127.77.0.1"]), &authority, FLEET_SECRET)
    };
    let (first, second) = (own("first", &group), own("second", &group));
    group.add_router(&first).routers[0].wait_until_ready().await;
    group.add_router(&second).routers[1].wait_until_ready().await;
    group.wait_until_all_joined().await;
    let load = group.load(3);

    let pair = authority.sign(&["127.77.0.1"]);
    let guesses = PeerSettings::with_tls(&group, "guesses", &pair, &authority, "what nobody of the group knows");
    group.add_router(&guesses);
    group.routers[2].wait_until_logged("is the secret the same there?").await;
    group.routers[0].wait_until_logged("another secret").await;

    let pair = unknown.sign(&["127.77.0.1"]);
    // It trusts those whom it wants to join; they do not trust it.
    let forger = PeerSettings::with_tls(&group, "forger", &pair, &authority, FLEET_SECRET);
    group.add_router(&forger);
    group.routers[3].wait_until_logged("no connection to the coordinator").await;
    group.routers[0].wait_until_logged("rejected peer connection from").await;
    // Both authorities have one name, so that what is wrong is the signature.
    group.routers[0].wait_until_logged("invalid peer certificate").await;

    // And one that does not trust those who are there does not speak with them.
    let pair = authority.sign(&["127.77.0.1"]);
    let distrusts = PeerSettings::with_tls(&group, "distrusts", &pair, &unknown, FLEET_SECRET);
    group.add_router(&distrusts);
    group.routers[4].wait_until_logged("invalid peer certificate").await;

    load.wait_for_answers(20, &[0, 1]).await;
    load.stop().await.assert_none_failed_except_on(None);
    group.assert_never_above_cap();
    for stranger in &group.routers[2..] {
        let (status, text) = stranger.try_get("/readyz").await.unwrap();
        assert_eq!((status, text.contains("joining its fleet")), (503, true), "{text}");
    }
    let members = group.routers[0].fleet_status().await["members"].as_array().unwrap().len();
    assert_eq!(members, 2, "strangers hold nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_keep_no_router_out() {
    let mut group = RouterFleet::without_routers(FleetSetup::default()).await;
    group.add_router(&PeerSettings::default()).routers[0].wait_until_ready().await;
    let (peer_address, started) = (group.routers[0].peer, std::time::Instant::now());
    let strangers = tokio::spawn(async move {
        let mut silent = std::collections::VecDeque::new();
        loop {
            silent.push_back(tokio::net::TcpStream::connect(peer_address).await.unwrap());
            if silent.len() > 200 {
                silent.pop_front();
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    });
    group.add_router(&PeerSettings::default());
    let ready = group.routers[1].wait_until_ready().await;
    let whole = group.wait_until_all_joined().await;
    strangers.abort();
    println!("  ready {ready:?} after its start, one group {whole:?} later");
    // It would wait for places for seconds, and then serve what it takes to be its fair share.
    assert!(ready < SLOT_LEASE / 2, "{ready:?}");
    let (log, most) = (group.routers[0].log(), 1 + started.elapsed().as_secs() / 5);
    let said = log.matches("rejected peer connection from=127.0.0.1:").count() as u64;
    assert!((1..=most).contains(&said), "{said} lines that anybody can cause:\n{log}");
}

#[tokio::test]
async fn what_others_can_reach_without_certificates_is_refused_before_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("router.yaml");
    std::fs::create_dir(folder.path().join("endpoints")).unwrap();
    let mut router = Router::new(file.clone());
    let plan = FleetSetup::default();
    std::fs::write(&file, settings(&router, &plan, &PeerSettings::default())).unwrap();
    let (is_right, said) = check(&file);
    assert!(is_right, "{said}");
    router.peer = "192.0.2.1:7070".parse().unwrap();
    std::fs::write(&file, settings(&router, &plan, &PeerSettings::default())).unwrap();
    let (is_right, said) = check(&file);
    assert!(!is_right && said.contains("fleet.peer.tls: is missing"), "{said}");
}
