//! What attacks cost the real program: bounded for each connection, and its other clients are served. The exact figures
//! are those of a release build on a quiet machine: `cargo bench --bench attacks`.

use std::time::Duration;

use crate::attackers::ATTACKS;
use crate::cost::{AttackedProgram, measure};

/// Of a debug build on a machine that has other things to do.
const MAX_CPU_PER_CONNECTION: Duration = Duration::from_millis(500);
const MAX_CPU_PER_PIECE: Duration = Duration::from_millis(20);
const MAX_GOOD_CLIENT_WAIT: Duration = Duration::from_secs(2);

#[test]
fn each_attack_is_bounded_and_the_good_client_is_served_meanwhile() {
    let program = AttackedProgram::start(None);
    for attack in ATTACKS {
        let cost = measure(&program, Some(attack), attack.good_client_credential, Duration::from_millis(300));
        let (name, count) = (attack.name, u32::try_from(cost.connections).unwrap());
        println!("{name}: {count} connections, {} pieces, {:?}", cost.pieces, cost.cpu);
        assert!(cost.cpu / count < MAX_CPU_PER_CONNECTION, "{name}: {:?} for {count} connections", cost.cpu);
        let pieces = u32::try_from(cost.pieces.max(1)).unwrap();
        assert!(cost.cpu / pieces < MAX_CPU_PER_PIECE, "{name}: {:?} for {pieces} pieces", cost.cpu);
        assert!(cost.percentile(99) < MAX_GOOD_CLIENT_WAIT, "{name}: {:?}", cost.percentile(99));
    }
}
