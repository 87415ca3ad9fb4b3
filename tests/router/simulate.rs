//! Promises of `simulate`: what it reads, what it prints, how it ends.

use std::fs::File;
use std::process::{Command, Output, Stdio};

const DOCUMENT: &str = "apiVersion: inference-router.dev/v1alpha1
kind: OnlineEndpoint
metadata: {name: my-endpoint}
spec:
  authMode: none
  traffic: {blue: 100}
  deployments:
    - name: blue
      process: {command: [model, --port, \"{port}\"]}
      requestSettings: {requestTimeoutMs: 1000}
      scaleSettings: {type: target_utilization, minInstances: 1, maxInstances: 4}
";

/// A folder to work in, with an endpoint's document.
struct SimulateFixture(tempfile::TempDir);

impl SimulateFixture {
    fn new() -> Self {
        let rig = Self(tempfile::tempdir().unwrap());
        rig.write("endpoint.yaml", DOCUMENT);
        rig
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-router"));
        command.current_dir(&self.0).args(["simulate", "--endpoint", "endpoint.yaml"]);
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// What it prints when all is well.
    fn stdout_of_success(&self, arguments: &str) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains of, with this exit code.
    fn stderr_of_failure(&self, code: i32, arguments: &str) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{arguments}: {stderr}");
        assert!(stdout.is_empty(), "{arguments}: {stdout:?}");
        stderr
    }
}

/// The number after `word`.
fn number(text: &str, word: &str) -> u64 {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text}"));
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn every_request_is_accounted_for() {
    let rig = SimulateFixture::new();
    for load in ["exponential:300", "long-tail:400", "1..3000"] {
        let text = rig.stdout_of_success(&format!("--rps 1..15 --minutes 10 --service-ms {load} --start-seconds 20"));
        let of = |word| number(&text, word);
        let parts = [of("served"), of("rejected with 503"), of("timed out with 504"), of("unfinished at the end")];
        assert_eq!(of("\nrequests"), parts.iter().sum::<u64>(), "{text}");
        assert!(parts.iter().all(|part| *part > 0), "{text}");
    }
}

#[test]
fn the_same_input_prints_the_same_and_another_seed_something_else() {
    let rig = SimulateFixture::new();
    let load = "--rps 8 --minutes 5 --service-ms 100..400";
    assert_eq!(rig.stdout_of_success(load), rig.stdout_of_success(load));
    assert_ne!(rig.stdout_of_success(load), rig.stdout_of_success(&format!("{load} --seed 2")));
}

/// Twenty a second for 100 ms each are two at a time: three replicas at 70 %, however long those wait that come before
/// they have started. Only working off those may take a few more, for a while.
#[test]
fn a_steady_load_asks_for_what_the_rule_says() {
    let rig = SimulateFixture::new();
    for least in [0, 1] {
        let scale = format!("minInstances: {least}, maxInstances: 100");
        rig.write("endpoint.yaml", &DOCUMENT.replace("minInstances: 1, maxInstances: 4", &scale));
        let text = rig.stdout_of_success("--rps 20 --even --service-ms 100 --start-seconds 5 --minutes 10");
        assert!((3..=5).contains(&number(&text, "most replicas")), "{text}");
        let last: Vec<&str> = text.lines().nth(26).unwrap().split_whitespace().collect();
        assert_eq!(last[..3], ["10.0", "3", "3"], "{text}");
    }
}

#[test]
fn a_trace_is_replayed_from_its_first_request() {
    let rig = SimulateFixture::new();
    rig.write("trace.csv", "at_ms,service_ms\n1790000000000,100\n1790000001000,5000\n1790000002000,1\n");
    let text = rig.stdout_of_success("--trace trace.csv");
    let of = |word| number(&text, word);
    assert_eq!((of("\nrequests"), of("served"), of("timed out with 504")), (3, 2, 1), "{text}");
    rig.write("trace.csv", "at_ms,service_ms\n0,1\n99999999999,1\n");
    assert!(rig.stderr_of_failure(1, "--trace trace.csv").contains("trace.csv: spans more than a week"));
    assert!(rig.stderr_of_failure(1, "--trace nothing.csv").contains("nothing.csv cannot be read"));
}

#[test]
fn settings_are_compared_in_a_table_each_value_with_each() {
    let rig = SimulateFixture::new();
    let text = rig.stdout_of_success("--rps 10 --minutes 5 --compare target=50,90 max=2,4");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows[0].starts_with("| target | max | rejected % |"), "{text}");
    let settings: Vec<String> = rows[2..].iter().map(|row| row.split('|').take(3).collect::<String>()).collect();
    assert_eq!(settings, [" 50  2 ", " 50  4 ", " 90  2 ", " 90  4 "], "{text}");
}

#[test]
fn a_picture_is_drawn() {
    let rig = SimulateFixture::new();
    rig.stdout_of_success("--rps 10 --minutes 5 --plot out.svg");
    let svg = std::fs::read_to_string(rig.0.path().join("out.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("deployment blue") && svg.contains("asked for"), "{svg}");
    assert!(
        rig.stderr_of_failure(1, "--rps 10 --minutes 5 --plot nowhere/out.svg")
            .contains("nowhere/out.svg cannot be written")
    );
}

#[test]
fn wrong_usage_is_refused_with_what_to_do() {
    let rig = SimulateFixture::new();
    for (arguments, advice) in [
        ("", "--trace <FILE>|--rps <N|N..M>"),
        ("--rps 10 --trace x.csv", "cannot be used with"),
        ("--rps 50..5", "the lower number first"),
        ("--rps -1", ""),
        ("--rps 10 --service-ms 400..100", "the shorter time first"),
        ("--rps 10 --minutes 0", "at most a week"),
        ("--rps 10 --compare min=5", "5 replicas at least and 4 at most"),
        ("--rps 10 --compare speed=5", "these can: target"),
        ("--rps 10 --compare target=0", "from 1 to 100"),
        ("--rps 10 --compare target=50 target=60", "once"),
    ] {
        let what = rig.stderr_of_failure(2, arguments);
        assert!(what.contains(advice), "{arguments}: {what}");
    }
    rig.write("endpoint.yaml", "kind: OnlineEndpoint\nname: [");
    assert!(rig.stderr_of_failure(78, "--rps 10").contains("endpoint.yaml"));
}

/// As the shell's `> /dev/full` and `| head -0`.
#[test]
fn an_outcome_that_cannot_be_written_is_a_failure_unless_its_reader_left() {
    let rig = SimulateFixture::new();
    let load = "--rps 10 --minutes 1";
    let full = rig.command(load).stdout(File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("cannot be written"), "{full:?}");
    let mut left = rig.command(load).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(left.stdout.take());
    assert_eq!(left.wait_with_output().unwrap().status.code(), Some(0));
}
