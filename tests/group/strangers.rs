//! Who is let in.

use crate::authority::Authority;
use crate::group::{Group, Peer, Plan, check, settings};
use crate::router::Router;
use crate::{LEASE, LOOK};

const SECRET: &str = "what every router of the group knows";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_with_certificates_and_a_secret_are_one_and_nobody_else_is_let_in() {
    let mut group = Group::empty(Plan::default()).await;
    let (authority, unknown) = (Authority::new(), Authority::new());
    let own = |name: &str, group: &Group| Peer::tls(group, name, &authority.sign(&["127.77.0.1"]), &authority, SECRET);
    let (first, second) = (own("first", &group), own("second", &group));
    group.add(&first).routers[0].until_ready().await;
    group.add(&second).routers[1].until_ready().await;
    group.until_whole().await;
    let load = group.load(3);

    let pair = authority.sign(&["127.77.0.1"]);
    let guesses = Peer::tls(&group, "guesses", &pair, &authority, "what nobody of the group knows");
    group.add(&guesses);
    group.routers[2].until_logged("is the secret the same there?").await;
    group.routers[0].until_logged("another secret").await;

    let pair = unknown.sign(&["127.77.0.1"]);
    // It trusts those whom it wants to join; they do not trust it.
    let forger = Peer::tls(&group, "forger", &pair, &authority, SECRET);
    group.add(&forger);
    group.routers[3].until_logged("no connection to the coordinator").await;
    group.routers[0].until_logged("not let in from").await;
    // Both authorities have one name, so that what is wrong is the signature.
    group.routers[0].until_logged("invalid peer certificate").await;

    // And one that does not trust those who are there does not speak with them.
    let pair = authority.sign(&["127.77.0.1"]);
    let distrusts = Peer::tls(&group, "distrusts", &pair, &unknown, SECRET);
    group.add(&distrusts);
    group.routers[4].until_logged("invalid peer certificate").await;

    load.go_on_for(20, &[0, 1]).await;
    load.stop().await.none_failed_but_of(None);
    group.never_above_the_cap();
    for stranger in &group.routers[2..] {
        let (status, text) = stranger.try_get("/readyz").await.unwrap();
        assert_eq!((status, text.contains("joining its group")), (503, true), "{text}");
    }
    let members = group.routers[0].fleet().await["members"].as_array().unwrap().len();
    assert_eq!(members, 2, "strangers hold nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_keep_no_router_out() {
    let mut group = Group::empty(Plan::default()).await;
    group.add(&Peer::default()).routers[0].until_ready().await;
    let (door, started) = (group.routers[0].peer, std::time::Instant::now());
    let strangers = tokio::spawn(async move {
        let mut silent = std::collections::VecDeque::new();
        loop {
            silent.push_back(tokio::net::TcpStream::connect(door).await.unwrap());
            if silent.len() > 200 {
                silent.pop_front();
                tokio::time::sleep(LOOK).await;
            }
        }
    });
    group.add(&Peer::default());
    let ready = group.routers[1].until_ready().await;
    let whole = group.until_whole().await;
    strangers.abort();
    println!("  ready {ready:?} after its start, one group {whole:?} later");
    // It would wait for places for seconds, and then serve what it takes to be its fair share.
    assert!(ready < LEASE / 2, "{ready:?}");
    let (log, most) = (group.routers[0].log(), 1 + started.elapsed().as_secs() / 5);
    let said = log.matches("was not let in from=127.0.0.1:").count() as u64;
    assert!((1..=most).contains(&said), "{said} lines that anybody can cause:\n{log}");
}

#[tokio::test]
async fn what_others_can_reach_without_certificates_is_refused_before_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("router.yaml");
    std::fs::create_dir(folder.path().join("endpoints")).unwrap();
    let mut router = Router::new(file.clone());
    let plan = Plan::default();
    std::fs::write(&file, settings(&router, &plan, &Peer::default())).unwrap();
    let (is_right, said) = check(&file);
    assert!(is_right, "{said}");
    router.peer = "192.0.2.1:7070".parse().unwrap();
    std::fs::write(&file, settings(&router, &plan, &Peer::default())).unwrap();
    let (is_right, said) = check(&file);
    assert!(!is_right && said.contains("fleet.peer.tls: is missing"), "{said}");
}
