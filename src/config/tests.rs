use super::*;
use crate::control::documents;
use crate::model::endpoint::{Auth, DeploymentTarget, ScaleSettings};
use crate::model::fleet::{LeaderLockPlace, PartitionMode};
use crate::model::tls::{CertificateSource, TlsVersion};

/// Settings from a file with this text, in a folder of its own, and these variables.
fn load_text(text: &str, env: &[(&str, &str)]) -> (Result<RouterSettings, InvalidSettings>, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.yaml");
    std::fs::write(&path, text).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    (load(&path, env), path)
}

fn load_valid(text: &str, env: &[(&str, &str)]) -> RouterSettings {
    load_text(text, env).0.unwrap()
}

/// The problems, as source (`file` or `environment`), path and message.
fn load_problems(text: &str, env: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let (result, path) = load_text(text, env);
    let path = path.display().to_string();
    let named = |source: String| if source == path { "file".to_owned() } else { source };
    result
        .unwrap_err()
        .problems
        .into_iter()
        .map(|problem| (named(problem.source), problem.path, problem.message))
        .collect()
}

#[track_caller]
fn assert_refused(text: &str, path: &str, gist: &str) {
    let problems = load_problems(text, &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].0.as_str(), problems[0].1.as_str()), ("file", path), "{problems:?}");
    assert!(problems[0].2.contains(gist), "{problems:?}");
}

#[track_caller]
fn assert_variable_refused(name: &str, value: &str, gist: &str) {
    let problems = load_problems("", &[(name, value)]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].0.as_str(), problems[0].1.as_str()), ("environment", name), "{problems:?}");
    assert!(problems[0].2.contains(gist), "{problems:?}");
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn an_empty_file_gives_the_defaults() {
    for text in ["", "# nothing", "---\n", "{}", "limits:\nlog:\n"] {
        let (settings, path) = load_text(text, &[]);
        let files = vec![path.parent().unwrap().join("endpoints/")];
        assert_eq!(
            settings.unwrap(),
            RouterSettings { endpoint_files: files, ..RouterSettings::default() },
            "{text:?}"
        );
    }
}

#[test]
fn every_value_given_is_kept() {
    let settings = load_valid(
        "scoring: {address: '[::1]:80'}\nadmin: {address: '127.0.0.1:0'}\nworkers: 3\nstatusCodes: managed\n\
         limits: {maxPayloadBytes: 1, maxHeaderBytes: 8192, maxHeaders: 2, headerReadTimeout: 1s,\n  \
           bodyIdleTimeout: 2s, maxConnections: 3, keepAliveTimeout: 3s, mirrorBufferBytes: 4}\n\
         shutdown: {unreadyDelay: 0s, drainTimeout: 1m}\n\
         endpoints: {files: [/abs, rel/x.yaml]}\nlog: {level: debug, format: text, access: false}\n",
        &[],
    );
    assert_eq!(settings.scoring.to_string(), "[::1]:80");
    assert_eq!(settings.admin.port(), 0);
    assert_eq!(settings.workers, WorkerCount::Count(NonZeroUsize::new(3).unwrap()));
    assert_eq!(settings.status_codes, StatusCodes::Managed);
    let limits = Limits {
        max_payload_bytes: 1,
        max_header_bytes: 8_192,
        max_headers: 2,
        header_read_timeout: Duration::from_secs(1),
        body_idle_timeout: Duration::from_secs(2),
        max_connections: 3,
        keep_alive_timeout: Duration::from_secs(3),
        mirror_buffer_bytes: 4,
    };
    assert_eq!(settings.limits, limits);
    let shutdown = ShutdownSettings { unready_delay: Duration::ZERO, drain_timeout: Duration::from_secs(60) };
    assert_eq!(settings.shutdown, shutdown);
    assert_eq!(settings.endpoint_files[0], Path::new("/abs"));
    assert!(settings.endpoint_files[1].is_absolute() && settings.endpoint_files[1].ends_with("rel/x.yaml"));
    assert_eq!(settings.log, LogSettings { level: LogLevel::Debug, format: LogFormat::Text, access: false });
}

#[test]
fn each_rule_names_the_key_and_what_would_be_right() {
    assert_refused(
        "scoring: {address: localhost}",
        "scoring.address",
        "\"localhost\", which is not an IP address and a port",
    );
    assert_refused("admin: {address: ':9090'}", "admin.address", "`127.0.0.1:9090`");
    assert_refused("admin: {address: '0.0.0.0:8080'}", "admin.address", "taken by scoring.address");
    assert_refused("admin: {address: '127.0.0.1:8080'}", "admin.address", "choose another port");
    for workers in ["0", "-1", "1025", "many", "1.5", "[]"] {
        assert_refused(&format!("workers: {workers}"), "workers", "`auto` or a number of threads from 1 to 1024");
    }
    assert_refused("statusCodes: kubernets", "statusCodes", "did you mean `kubernetes`?");
    assert_refused("limits: {maxPayloadBytes: 0}", "limits.maxPayloadBytes", "is 0");
    assert_refused("limits: {maxPayloadBytes: 10MB}", "limits.maxPayloadBytes", "whole number");
    assert_refused("limits: {maxHeaderBytes: 8191}", "limits.maxHeaderBytes", "between 8192 and 1048576");
    assert_refused("limits: {maxHeaderBytes: 1048577}", "limits.maxHeaderBytes", "between 8192 and 1048576");
    assert_refused("limits: {maxHeaders: 0}", "limits.maxHeaders", "between 1 and");
    assert_refused("limits: {maxConnections: 0}", "limits.maxConnections", "between 1 and");
    assert_refused("limits: {headerReadTimeout: 0s}", "limits.headerReadTimeout", "between 1ms and 1h");
    assert_refused("limits: {bodyIdleTimeout: 2h}", "limits.bodyIdleTimeout", "is 2h");
    assert_refused("limits: {keepAliveTimeout: 75}", "limits.keepAliveTimeout", "75 has no unit");
    assert_refused("limits: {maxheaders: 5}", "limits.maxheaders", "did you mean `maxHeaders`?");
    assert_refused("shutdown: {unreadyDelay: 2h}", "shutdown.unreadyDelay", "between 0s and 1h");
    assert_refused("shutdown: {drainTimeout: 25h}", "shutdown.drainTimeout", "between 0s and 24h");
    assert_refused("shutdown: [5s, 300s]", "shutdown", "a mapping");
    assert_refused("endpoints: {files: []}", "endpoints.files", "at least one");
    assert_refused("endpoints: {files: ['']}", "endpoints.files[0]", "is empty");
    assert_refused("endpoints: {files: e.yaml}", "endpoints.files", "write [\"e.yaml\"]");
    assert_refused("log: {level: verbose}", "log.level", "`trace`");
    assert_refused("log: {format: txt}", "log.format", "did you mean `text`?");
    assert_refused("log: {access: yes}", "log.access", "`true` or `false`");
}

#[test]
fn a_fleet_of_routers_says_how_they_reach_each_other_and_who_coordinates() {
    let fleet = |text: &str, env: &[(&str, &str)]| load_valid(&format!("fleet: {text}"), env).fleet.unwrap();
    let local = fleet("{peer: {address: \"127.0.0.1:7071\"}, leaderLock: {file: leader}}", &[]);
    assert_eq!(
        (local.advertise.as_str(), local.term_duration, local.mode),
        ("127.0.0.1:7071", Duration::from_secs(5), PartitionMode::Available)
    );
    assert!(
        matches!(&local.leader_lock, LeaderLockPlace::File(file) if file.is_absolute() && file.ends_with("leader"))
    );
    assert_eq!((local.tls, local.secret_file), (None, None));
    let tls = "{certFile: a.crt, keyFile: a.key, caFile: ca.crt}";
    let text =
        format!("{{peer: {{tls: {tls}, secretFile: s}}, leaderLock: {{file: l}}, termSeconds: 2, mode: strict}}");
    let name = [("INFERENCE_ROUTER__FLEET__PEER__ADVERTISE", "10.0.0.5:7070")];
    let other = fleet(&text, &name);
    assert_eq!(
        (other.advertise.as_str(), other.term_duration, other.mode),
        ("10.0.0.5:7070", Duration::from_secs(2), PartitionMode::Strict)
    );
    assert!(other.tls.is_some_and(|tls| tls.ca_file.ends_with("ca.crt") && tls.server_name.is_none()));
    let cluster =
        "endpoints: {kubernetes: {}}\nfleet: {peer: {address: \"127.0.0.1:1\"}, leaderLock: {kubernetes: {}}}";
    let lease = load_valid(cluster, &[]).fleet.unwrap().leader_lock;
    assert_eq!(lease, LeaderLockPlace::Kubernetes("inference-router".to_owned()));

    let other_names = fleet("{peer: {address: \"127.0.0.1:1\"}, lease: {file: l}, leaseSeconds: 2}", &[]);
    let same = [("INFERENCE_ROUTER__FLEET__LEASE_SECONDS", "2"), ("INFERENCE_ROUTER__FLEET__LEASE", "{file: l}")];
    for settings in [other_names, fleet("{peer: {address: \"127.0.0.1:1\"}}", &same)] {
        assert!(matches!(settings.leader_lock, LeaderLockPlace::File(file) if file.ends_with("l")));
        assert_eq!(settings.term_duration, Duration::from_secs(2));
    }

    let refuses = |text: &str, path: &str, gist: &str| {
        let problems = load_problems(text, &[]);
        assert!(problems.iter().any(|(_, at, what)| at == path && what.contains(gist)), "{text}: {problems:?}");
    };
    let local = "peer: {address: \"127.0.0.1:1\"}";
    refuses("fleet: {leaderLock: {file: l}}", "fleet.peer.tls", "certFile");
    refuses("fleet: {leaderLock: {file: l}}", "fleet.peer.advertise", "is missing");
    refuses(&format!("fleet: {{{local}}}"), "fleet.leaderLock", "{file: leader}");
    refuses(
        &format!("fleet: {{{local}, leaderLock: {{kubernetes: {{}}}}}}"),
        "fleet.leaderLock.kubernetes",
        "needs a cluster",
    );
    refuses(
        &format!("fleet: {{{local}, leaderLock: {{file: l, kubernetes: {{}}}}}}"),
        "fleet.leaderLock",
        "one of them",
    );
    refuses(
        &format!("fleet: {{{local}, leaderLock: {{file: l}}, termSeconds: 0}}"),
        "fleet.termSeconds",
        "between 1 and 60",
    );
    refuses(&format!("fleet: {{{local}, leaderLock: {{file: l}}, mode: strikt}}"), "fleet.mode", "`strict`");
    refuses("fleet: {peer: {advertise: router}}", "fleet.peer.advertise", "no host with a port");
    refuses("fleet: {peer: {tls: {certFile: a, keyFile: b}}}", "fleet.peer.tls.caFile", "is missing");
    refuses("fleet: {peer: {tls: {certFile: a, keyFile: b, caFile: c}}}", "fleet.peer.secretFile", "is missing");
}

#[test]
fn a_fleet_of_which_nothing_is_said_is_a_problem_and_not_a_router_alone() {
    assert_refused("fleet:", "fleet", "is empty; write `peer` and `lease`");
    let lease = [("INFERENCE_ROUTER__FLEET__LEASE", "{file: l}")];
    let of_variables = [lease[0], ("INFERENCE_ROUTER__FLEET__PEER__ADDRESS", "127.0.0.1:1")];
    assert!(load_valid("fleet:", &of_variables).fleet.is_some());
}

#[test]
fn where_a_router_says_that_it_is_others_can_connect() {
    let group = |peer: &str| format!("fleet: {{peer: {{address: {peer}}}, leaderLock: {{file: l}}}}");
    let at = |advertise: &str| group(&format!("\"127.0.0.1:7071\", advertise: {advertise:?}"));
    for right in ["10.0.0.5:7070", "router-0.routers.my-namespace.svc:7070", "[fd00::1]:7070", "fd00::1:7070", "a_b:1"]
    {
        assert_eq!(load_valid(&at(right), &[]).fleet.unwrap().advertise, right);
    }
    for (wrong, gist) in [
        ("", "no host with a port"),
        ("router", "no host with a port"),
        (":7070", "no host with a port"),
        ("router:", "no host with a port"),
        ("router:70700", "no host with a port"),
        ("router/a:7070", "no host with a port"),
        ("a router:7070", "no host with a port"),
        ("0.0.0.0:27070", "where to listen"),
        ("[::]:27070", "where to listen"),
        ("127.0.0.1:0", "port 0"),
        ("router:0", "port 0"),
        ("http://1.2.3.4:5", "a scheme"),
    ] {
        assert_refused(&at(wrong), "fleet.peer.advertise", gist);
        assert_refused(&at(wrong), "fleet.peer.advertise", "write `host:port`, a name or an address");
    }
    assert_refused(&group("\"127.0.0.1:0\""), "fleet.peer.advertise", "127.0.0.1:0 is no address to connect to");
}

#[test]
fn endpoints_come_from_files_or_from_a_cluster() {
    let cluster =
        |text: &str| parse(text, "file", Path::new("/w"), std::iter::empty()).map(|settings| settings.kubernetes);
    assert_eq!(cluster("endpoints: {files: [a]}").unwrap(), None);
    let text = "endpoints: {kubernetes: {namespaces: [team-a, team-b], scoringUrl: 'https://models.example/'}}";
    let namespaces = vec!["team-a".to_owned(), "team-b".to_owned()];
    let scoring_url = Some("https://models.example".to_owned());
    assert_eq!(cluster(text).unwrap(), Some(KubernetesSettings { namespaces, scoring_url, service: None }));
    let text = "endpoints: {kubernetes: {service: router}}";
    assert_eq!(cluster(text).unwrap().and_then(|it| it.service).as_deref(), Some("router"));
    assert_refused(
        "endpoints: {kubernetes: {service: router, scoringUrl: 'https://a'}}",
        "endpoints.kubernetes.service",
        "one or the other",
    );
    assert_eq!(cluster("endpoints: {kubernetes: {}}").unwrap(), Some(KubernetesSettings::default()));
    assert_refused("endpoints: {files: [a], kubernetes: {}}", "endpoints.files", "remove one");
    assert_refused(
        "endpoints: {kubernetes: {namespaces: [Team]}}",
        "endpoints.kubernetes.namespaces[0]",
        "small letters",
    );
    assert_refused("endpoints: {kubernetes: {namespaces: [a, a]}}", "endpoints.kubernetes.namespaces[1]", "once");
    assert_refused("endpoints: {kubernetes: {scoringUrl: models}}", "endpoints.kubernetes.scoringUrl", "https://");
}

#[test]
fn tls_says_where_its_certificates_are() {
    let pair = |cert: &str, key: &str| CertificateSource::Pair { cert: cert.into(), key: key.into() };
    let text = "scoring: {tls: {certFile: a.crt, keyFile: /b.key, minVersion: '1.3', handshakeTimeout: 2s}}
scoringTls: {certificates: [{certFolder: c}, {certFile: d, keyFile: e}], clientCaFile: f, minVersion: 1.3}";
    let settings = parse(text, "file", Path::new("/w"), std::iter::empty()).unwrap();
    let tls = settings.tls.unwrap();
    assert_eq!(tls.certificates, [pair("/w/a.crt", "/b.key")]);
    assert_eq!((tls.min_version, tls.handshake_timeout), (TlsVersion::V1_3, Duration::from_secs(2)));
    let TlsListener { address, tls } = settings.scoring_tls.unwrap();
    assert_eq!(address.to_string(), "0.0.0.0:8443");
    assert_eq!(tls.certificates, [CertificateSource::Folder("/w/c".into()), pair("/w/d", "/w/e")]);
    assert_eq!((tls.client_ca_file, tls.min_version), (Some("/w/f".into()), TlsVersion::V1_3));
}

#[test]
fn certificates_and_signing_keys_may_be_in_secrets_of_a_cluster() {
    let text = "{endpoints: {kubernetes: {}}, scoringTls: {certSecret: web}, tokens: {signingSecret: signing}}";
    let settings = parse(text, "file", Path::new("/w"), std::iter::empty()).unwrap();
    let secrets: Vec<_> = settings.secret_references().collect();
    let expected = [("scoringTls.certSecret", "web"), ("tokens.signingSecret", "signing")];
    assert_eq!(secrets, expected.map(|(path, name)| (path.to_owned(), name)));
    assert_refused("tokens: {signingSecret: signing}", "tokens.signingSecret", "`endpoints.kubernetes`");
    assert_refused("scoringTls: {certificates: [{certSecret: a}]}", "scoringTls.certSecret", "`endpoints.kubernetes`");
    let odd = "{endpoints: {kubernetes: {}}, scoringTls: {certSecret: X/y}}";
    assert_refused(odd, "scoringTls.certSecret", "which is no name of an object");
    assert_refused(
        "endpoints: {kubernetes: {service: a/b}}",
        "endpoints.kubernetes.service",
        "which is no name of an object",
    );
    let both = "{endpoints: {kubernetes: {}}, scoringTls: {certSecret: a, certFile: b}}";
    assert_refused(both, "scoringTls.certSecret", "beside `certFile`");
    let both = "{endpoints: {kubernetes: {}}, tokens: {signingSecret: a, signingKeyFile: b}}";
    assert_refused(both, "tokens.signingSecret", "in a Secret or in files");
}

#[test]
fn tls_that_cannot_be_meant_is_refused() {
    assert_refused("scoringTls: {address: a, certFile: a, keyFile: b}", "scoringTls.address", "not an IP address");
    assert_refused(
        "scoringTls: {address: '0.0.0.0:9090', certFile: a, keyFile: b}",
        "admin.address",
        "taken by scoringTls",
    );
    assert_refused(
        "scoringTls: {address: '0.0.0.0:8080', certFile: a, keyFile: b}",
        "scoringTls.address",
        "taken by scoring.",
    );
    assert_refused("scoring: {tls: {}}", "scoring.tls", "`certFile` and `keyFile`, or `certFolder`");
    assert_refused("scoring: {tls: {certFile: a}}", "scoring.tls.keyFile", "is missing");
    assert_refused("scoring: {tls: {keyFile: a}}", "scoring.tls.certFile", "is missing");
    assert_refused("scoring: {tls: {certFile: a, certFolder: b}}", "scoring.tls.certFolder", "write one or the other");
    assert_refused("scoring: {tls: {certFile: '', keyFile: b}}", "scoring.tls.certFile", "is empty");
    assert_refused("scoring: {tls: {certificates: []}}", "scoring.tls.certificates", "is empty");
    assert_refused(
        "scoring: {tls: {certificates: [{keyFile: b}]}}",
        "scoring.tls.certificates[0].certFile",
        "is missing",
    );
    assert_refused(
        "scoring: {tls: {certFolder: a, certificates: [{certFolder: b}]}}",
        "scoring.tls.certificates",
        "beside",
    );
    assert_refused("scoring: {tls: {certFolder: a, address: b}}", "scoring.tls.address", "scoring.address");
    assert_refused("scoring: {tls: {certFolder: a, minVersion: '1.1'}}", "scoring.tls.minVersion", "`1.2`");
    assert_refused(
        "scoring: {tls: {certFolder: a, handshakeTimeout: 0s}}",
        "scoring.tls.handshakeTimeout",
        "between 1ms",
    );
    assert_refused("scoring: {tls: {certFolder: a, clientCaFile: ''}}", "scoring.tls.clientCaFile", "is empty");
    assert_refused(
        "scoring: {tls: {certFolder: a, minversion: 1.3}}",
        "scoring.tls.minversion",
        "did you mean `minVersion`?",
    );
    let said = load_problems("scoringTls: {certFolder: a}", &[("INFERENCE_ROUTER__SCORING_TLS__MIN_VERSION", "1.4")]);
    assert!(said[0].0 == "environment" && said[0].2.contains("`1.3`"), "{said:?}");
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "workers: 0\nlimits: {maxHeaders: lots, maxHeaderBytes: 1}\nlgo: {}\n";
    let problems =
        load_problems(text, &[("INFERENCE_ROUTER__LOG__LEVEL", "loud"), ("INFERENCE_ROUTER__LGO__LEVEL", "info")]);
    let mut paths: Vec<&str> = problems.iter().map(|(_, path, _)| path.as_str()).collect();
    paths.sort_unstable();
    let expected = [
        "INFERENCE_ROUTER__LGO__LEVEL",
        "INFERENCE_ROUTER__LOG__LEVEL",
        "lgo",
        "limits.maxHeaderBytes",
        "limits.maxHeaders",
        "workers",
    ];
    assert_eq!(paths, expected, "{problems:?}");
}

#[test]
fn a_file_that_is_no_settings_file_is_told_so() {
    assert_refused("a: [", "", "line 1");
    assert_refused("workers: 1\nworkers: 2", "", "second time");
    assert_refused("workers: 1\n---\nworkers: 2", "", "has 2 documents");
    assert_refused("- a", "", "a mapping");
    assert_refused("kind: OnlineEndpoint\nspec: {}", "", "endpoints.files");
    let missing = load(Path::new("/nowhere/router.yaml"), std::iter::empty()).unwrap_err().problems;
    assert_eq!(missing[0].source, "/nowhere/router.yaml");
    assert!(missing[0].message.contains("cannot be read"), "{missing:?}");
}

#[test]
fn a_variable_counts_over_the_file_however_its_words_are_parted() {
    let text = "limits: {maxPayloadBytes: 1}";
    for name in ["MAX_PAYLOAD_BYTES", "MAXPAYLOADBYTES", "maxPayloadBytes", "max_payload_bytes"] {
        let settings = load_valid(text, &[(&format!("INFERENCE_ROUTER__LIMITS__{name}"), "77")]);
        assert_eq!(settings.limits.max_payload_bytes, 77, "{name}");
    }
    let settings = load_valid("limits: {maxHeaders: wrong}", &[("INFERENCE_ROUTER__LIMITS__MAX_HEADERS", "7")]);
    assert_eq!(settings.limits.max_headers, 7);
    let settings =
        load_valid("limits:\n", &[("INFERENCE_ROUTER__LIMITS__KEEP_ALIVE_TIMEOUT", "3s"), ("HOME", "/root")]);
    assert_eq!(settings.limits.keep_alive_timeout, Duration::from_secs(3));
    assert_eq!(load_valid("", &[("INFERENCE_ROUTER_SERVICE_HOST", "10.0.0.1")]).scoring.port(), 8080);
}

#[test]
fn a_variable_takes_lists_addresses_and_sections() {
    let settings = load_valid(
        "limits: {maxHeaders: 5, maxConnections: 6}",
        &[
            ("INFERENCE_ROUTER__ENDPOINTS__FILES", "[a.yaml, /b]"),
            ("INFERENCE_ROUTER__SCORING__ADDRESS", "127.0.0.1:1"),
            ("INFERENCE_ROUTER__LIMITS", "{maxHeaders: 50, headerReadTimeout: 4s}"),
            ("INFERENCE_ROUTER__LIMITS__HEADER_READ_TIMEOUT", "5s"),
            ("INFERENCE_ROUTER__WORKERS", "auto"),
            ("INFERENCE_ROUTER__LOG__ACCESS", "false"),
        ],
    );
    assert!(settings.endpoint_files[0].ends_with("a.yaml") && settings.endpoint_files[0].is_absolute());
    assert_eq!(settings.scoring.to_string(), "127.0.0.1:1");
    assert_eq!((settings.limits.max_headers, settings.limits.max_connections), (50, 6));
    assert_eq!(settings.limits.header_read_timeout, Duration::from_secs(5));
    assert!(!settings.log.access);
}

#[test]
fn the_name_of_a_variable_cannot_break_a_line() {
    let problems = load_problems("", &[("INFERENCE_ROUTER__A\nB", "1")]);
    assert_eq!((problems.len(), problems[0].1.as_str()), (1, r#"["INFERENCE_ROUTER__A\nB"]"#));
}

#[test]
fn a_wrong_variable_is_named() {
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__MAX_HEADER", "5", "INFERENCE_ROUTER__LIMITS__MAX_HEADERS?");
    assert_variable_refused("INFERENCE_ROUTER__NONSENSE", "5", "is no setting");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__MAX_HEADERS__X", "5", "is no setting");
    assert_variable_refused("INFERENCE_ROUTER__", "5", "is no setting");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__MAX_HEADERS", "", "is empty");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__MAX_HEADERS", "0", "is 0");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__MAX_HEADERS", "lots", "whole number");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS__KEEP_ALIVE_TIMEOUT", "5", "no unit");
    assert_variable_refused("INFERENCE_ROUTER__LIMITS", "{maxHeaders: 0}", "maxHeaders is 0");
    assert_variable_refused("INFERENCE_ROUTER__ENDPOINTS__FILES", "[a", "not one YAML value");
    let twice = [("INFERENCE_ROUTER__WORKERS", "1"), ("INFERENCE_ROUTER__WOR_KERS", "2")];
    assert!(load_problems("", &twice)[0].2.contains("sets too"));
}

/// `UPDATE_FILES=1 cargo test` writes the file anew.
#[test]
fn the_reference_file_is_what_the_code_says() {
    let path = in_repository("config/reference.yaml");
    if std::env::var_os("UPDATE_FILES").is_some() {
        std::fs::write(&path, reference_yaml()).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap();
    assert!(file == reference_yaml(), "config/reference.yaml is out of date; run UPDATE_FILES=1 cargo test");
}

#[test]
fn the_reference_file_changes_nothing() {
    let path = in_repository("config/reference.yaml");
    let files = vec![in_repository("config/endpoints/")];
    let settings = load(&path, std::iter::empty()).unwrap();
    assert_eq!(settings, RouterSettings { endpoint_files: files, ..RouterSettings::default() });
}

/// A key that is read but not in the table could not be set by a variable, and would be in no reference.
#[test]
fn the_table_of_keys_is_complete() {
    let (raw, _) = decode::<RawSettings>(first_document(&reference_yaml()));
    let raw = raw.unwrap();
    let (limits, shutdown, log) = (raw.limits.unwrap(), raw.shutdown.unwrap(), raw.log.unwrap());
    let count = |value: Value| value.as_object().unwrap().len();
    let known = |section: &str| reference::SETTING_KEYS.iter().filter(|key| key.path.starts_with(section)).count();
    for (written, section) in [
        (serde_json::to_value(&limits).unwrap(), "limits."),
        (serde_json::to_value(&shutdown).unwrap(), "shutdown."),
        (serde_json::to_value(&log).unwrap(), "log."),
    ] {
        assert!(!format!("{limits:?}{shutdown:?}{log:?}").contains("None"), "a key is missing in the table");
        assert_eq!(count(written), known(section), "{section}");
    }
}

fn first_document(text: &str) -> Value {
    yaml::parse_documents(text).remove(0).unwrap()
}

#[test]
fn the_quickstart_is_in_order() {
    let settings = load(&in_repository("config/quickstart.yaml"), std::iter::empty()).unwrap();
    assert_eq!(
        (settings.scoring.to_string(), settings.admin.to_string()),
        ("127.0.0.1:8080".into(), "127.0.0.1:9090".into())
    );
    assert_eq!((settings.shutdown.unready_delay, settings.log.format), (Duration::ZERO, LogFormat::Text));
    assert_eq!(settings.endpoint_files, [in_repository("config/quickstart/")]);
    let file = settings.endpoint_files[0].join("my-endpoint.yaml");
    let documents::ParsedDocuments { endpoints, problems, .. } =
        documents::parse(&std::fs::read_to_string(&file).unwrap(), "my-endpoint.yaml");
    assert_eq!(problems, []);
    let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    assert_eq!((endpoint.name.as_str(), endpoint.traffic.as_slice()), ("my-endpoint", [90, 10, 0].as_slice()));
    assert!(matches!(&endpoint.auth, Auth::Key(keys) if keys.len() == 1));
    assert!(
        endpoint
            .mirror
            .as_ref()
            .is_some_and(|mirror| (mirror.shadow_index, mirror.percent) == (2, 20) && mirror.comparison.is_some())
    );
    let [blue, green, shadow] = endpoint.deployments.as_slice() else { panic!("{endpoint:?}") };
    assert!(
        matches!(&blue.scale_settings, ScaleSettings::TargetUtilization(settings) if (settings.min_replicas, settings.max_replicas) == (1, 4))
    );
    assert_eq!(green.scale_settings, ScaleSettings::Fixed { instances: 2 });
    assert_eq!(shadow.scale_settings, ScaleSettings::Fixed { instances: 1 });
    for deployment in &endpoint.deployments {
        let DeploymentTarget::Process(process) = &deployment.target else { panic!("{deployment:?}") };
        assert_eq!(process.command[..2], ["inference-router", "model-server"]);
        assert_eq!(process.command[5], deployment.name.as_str());
        assert_eq!(deployment.request_settings.max_concurrent_per_instance.get(), 1);
    }
}
