use super::*;

/// When requests came and how long they took, in milliseconds.
fn millis(traced: &[Traced]) -> Vec<(u128, u128)> {
    traced.iter().map(|traced| (traced.arrival.at.as_millis(), traced.arrival.service.as_millis())).collect()
}

fn line(endpoint: &str, deployment: &str, time: &str, code: &str, total: f64, queue: f64) -> String {
    format!(
        r#"{{"TimeGenerated":"2026-11-26T10:00:{time}Z","EndpointName":"{endpoint}","DeploymentName":"{deployment}","ModelStatusCode":{code},"TotalDurationMs":{total},"QueueDurationMs":{queue}}}"#
    )
}

#[test]
fn a_table_is_read_whatever_wrote_it_and_begins_with_its_first_request() {
    let plain = "at_ms,service_ms\n0,100\n250,20.5\n";
    assert_eq!(millis(&parse(plain, "any").unwrap()), [(0, 100), (250, 20)]);
    for same in [
        "\u{feff}at_ms,service_ms\r\n0,100\r\n250,20.5\r\n",
        "\nat_ms, service_ms\n\n 250 , 20.5\n0,100",
        "at_ms,service_ms\n1790000000250,20.5\n1790000000000,100\n",
    ] {
        assert_eq!(millis(&parse(same, "any").unwrap()), [(0, 100), (250, 20)], "{same:?}");
    }
}

#[test]
fn what_is_wrong_with_a_table_is_said() {
    let rows = |rows: &str| parse(&format!("at_ms,service_ms\n{rows}"), "any").unwrap_err();
    for wrong in ["1", "1,", "1,2,3", "NaN,1", "1,-1", "1,inf", "-1,1", "one,1", "1,1e300"] {
        let what = rows(&format!("0,1\n{wrong}\n"));
        assert!(what.starts_with("line 3: ") && what.contains(wrong) && what.contains(HEADER), "{what}");
    }
    assert!(rows("").contains("no request"), "{}", rows(""));
    let week = 7 * 24 * 3600 * 1000_u64;
    for long in [format!("0,1\n{},1", week + 1), format!("0,{}", week + 1)] {
        assert!(rows(&long).contains("more than a week"), "{}", rows(&long));
    }
    assert_eq!(parse(&format!("at_ms,service_ms\n7,1\n{},1", week + 7), "any").unwrap().len(), 2);
    let more = parse("at_ms,service_ms,name\n1,2,x", "any").unwrap_err();
    assert!(more.contains("`at_ms,service_ms,name`"), "{more}");
}

#[test]
fn lines_of_the_access_log_are_found_among_others() {
    let log = [
        r#"{"timestamp":"2026-11-26T10:00:00Z","level":"INFO","message":"scoring listener"}"#.to_owned(),
        "no line of the router".to_owned(),
        // Written when it ended: it came at 1.0 s and waited 50 ms.
        line("Mine", "blue", "01.250", "200", 250.0, 50.0),
        line("other", "blue", "00.100", "200", 100.0, 0.0),
        line("mine", "green", "01.000", "200", 400.0, 0.0),
    ]
    .join("\n");
    let traced = parse(&log, "mine").unwrap();
    assert_eq!(millis(&traced), [(0, 400), (400, 200)]);
    assert_eq!(traced.iter().map(|traced| traced.deployment.as_str()).collect::<Vec<_>>(), ["green", "blue"]);
    let what = parse(&log, "theirs").unwrap_err();
    assert!(what.contains("no request of the endpoint theirs") && what.contains(HEADER), "{what}");
    assert!(parse("", "mine").is_err());
}

#[test]
fn requests_without_an_answer_take_as_long_as_the_others() {
    let log = [
        line("mine", "blue", "01.000", "200", 100.0, 0.0),
        line("mine", "blue", "02.000", "200", 300.0, 0.0),
        line("mine", "blue", "03.000", "null", 500.0, 500.0),
    ]
    .join("\n");
    assert_eq!(millis(&parse(&log, "mine").unwrap())[2], (1600, 200), "turned away half a second after it came");
}
