//! Routers that come.

use crate::gate::Gate;
use crate::group::{Group, Peer, Plan};
use crate::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_is_ready_when_it_has_joined_and_each_shows_the_group() {
    let mut group = Group::empty(Plan::default()).await;
    let gate = Gate::shut_from_the_start().await;
    group.add(&Peer::at(gate.address));
    group.routers[0].until_ready().await;
    group.add(&Peer::default());
    group.routers[1].until_logged("no connection to the coordinator").await;
    let (status, text) = group.routers[1].try_get("/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("\"joining its group\""), "{text}");
    gate.open(group.routers[0].peer);
    group.routers[1].until_ready().await;
    group.until_whole().await;
    let (first, second) = (group.routers[0].fleet().await, group.routers[1].fleet().await);
    println!("  {first}\n  {second}");
    let names = |fleet: &serde_json::Value| -> Vec<String> {
        let members = fleet["members"].as_array().unwrap().iter();
        let mut names: Vec<String> = members.map(|member| member["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let mut expected = vec![gate.address.to_string(), group.routers[1].peer.to_string()];
    expected.sort();
    for fleet in [&first, &second] {
        assert_eq!(fleet["coordinator"], gate.address.to_string());
        assert_eq!(fleet["epoch"], 1);
        assert_eq!(names(fleet), expected);
    }
    assert_eq!(
        (&first["router"], &second["router"]),
        (&expected_name(&gate.address), &expected_name(&group.routers[1].peer))
    );
    // What each holds and has waiting is known everywhere, a second later at the latest.
    until("figures of all members", async || {
        let second = group.routers[1].fleet().await;
        second["members"]
            .as_array()
            .unwrap()
            .iter()
            .all(|member| member["slots"].is_u64() && member["waiting"].is_u64())
    })
    .await;
    let load = group.load(4);
    load.go_on_for(10, &[0, 1]).await;
    load.stop().await.none_failed_but_of(None);
    group.never_above_the_cap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_routers_of_one_name_are_told_and_the_first_stays() {
    let mut group = Group::empty(Plan { mode: "available", ..Plan::default() }).await;
    group.add(&Peer::default()).routers[0].until_ready().await;
    group.add(&Peer::default()).routers[1].until_ready().await;
    group.until_whole().await;
    for twin in [0, 1] {
        let peer = Peer::at(group.routers[twin].peer);
        group.add(&peer);
        group.routers[0].until_logged(&format!("name=\"{}\"", group.routers[twin].peer)).await;
    }
    let load = group.load(2);
    load.go_on_for(100, &[0, 1]).await;
    load.stop().await;
    group.never_above_the_cap();
    for router in &group.routers[2..] {
        let (status, text) = router.try_get("/readyz").await.unwrap();
        assert_eq!((status, text.contains("joining its group")), (503, true), "{text}");
    }
    assert_eq!((group.routers[0].epoch().await, group.routers[0].coordinates().await), (1.0, true));
}

fn expected_name(address: &std::net::SocketAddr) -> serde_json::Value {
    address.to_string().into()
}
