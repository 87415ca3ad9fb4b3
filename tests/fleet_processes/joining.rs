//! Routers that join the fleet.

use crate::fleet::{FleetSetup, PeerSettings, RouterFleet};
use crate::peer_proxy::PeerProxy;
use crate::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_is_ready_when_it_has_joined_and_each_shows_the_fleet() {
    let mut group = RouterFleet::without_routers(FleetSetup::default()).await;
    let gate = PeerProxy::start_closed().await;
    group.add_router(&PeerSettings::advertised_at(gate.address));
    group.routers[0].wait_until_ready().await;
    group.add_router(&PeerSettings::default());
    group.routers[1].wait_until_logged("no connection to the coordinator").await;
    let (status, text) = group.routers[1].try_get("/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("\"joining its fleet\""), "{text}");
    gate.open_to(group.routers[0].peer);
    group.routers[1].wait_until_ready().await;
    group.wait_until_all_joined().await;
    let (first, second) = (group.routers[0].fleet_status().await, group.routers[1].fleet_status().await);
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
        assert_eq!(fleet["term"], 1);
        assert_eq!(names(fleet), expected);
    }
    assert_eq!(
        (&first["router"], &second["router"]),
        (&expected_name(&gate.address), &expected_name(&group.routers[1].peer))
    );
    // What each holds and has waiting is known everywhere, a second later at the latest.
    wait_until("figures of all members", async || {
        let second = group.routers[1].fleet_status().await;
        second["members"]
            .as_array()
            .unwrap()
            .iter()
            .all(|member| member["slots"].is_u64() && member["waiting"].is_u64())
    })
    .await;
    let load = group.load(4);
    load.wait_for_answers(10, &[0, 1]).await;
    load.stop().await.assert_none_failed_except_on(None);
    group.assert_never_above_cap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_routers_of_one_name_are_told_and_the_first_stays() {
    let mut group = RouterFleet::without_routers(FleetSetup { mode: "available", ..FleetSetup::default() }).await;
    group.add_router(&PeerSettings::default()).routers[0].wait_until_ready().await;
    group.add_router(&PeerSettings::default()).routers[1].wait_until_ready().await;
    group.wait_until_all_joined().await;
    for duplicate in [0, 1] {
        let peer = PeerSettings::advertised_at(group.routers[duplicate].peer);
        group.add_router(&peer);
        group.routers[0].wait_until_logged(&format!("name=\"{}\"", group.routers[duplicate].peer)).await;
    }
    let load = group.load(2);
    load.wait_for_answers(100, &[0, 1]).await;
    load.stop().await;
    group.assert_never_above_cap();
    for router in &group.routers[2..] {
        let (status, text) = router.try_get("/readyz").await.unwrap();
        assert_eq!((status, text.contains("joining its fleet")), (503, true), "{text}");
    }
    assert_eq!((group.routers[0].term().await, group.routers[0].is_coordinator().await), (1.0, true));
}

fn expected_name(address: &std::net::SocketAddr) -> serde_json::Value {
    address.to_string().into()
}
