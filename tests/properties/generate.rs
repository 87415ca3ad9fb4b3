//! A generator of endpoint documents, most parts of which are valid and some nearly.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

/// What is fit for a test, and what is not but looks like it. One field in `WRONG` is drawn from the second list.
const FIELDS_PER_WRONG_VALUE: u32 = 60;

pub struct Generator {
    rng: SmallRng,
    /// `host:port` of the model that every deployment has.
    model: String,
    /// A file with a key.
    key_file: String,
    number: usize,
}

impl Generator {
    pub fn new(seed: u64, model: String, key_file: String) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), model, key_file, number: 0 }
    }

    /// The next document. No two that are right have the same name.
    pub fn document(&mut self) -> Value {
        self.number += 1;
        let name = self.name();
        let mut metadata = json!({ "name": name });
        self.maybe(&mut metadata, "namespace", |g| g.pick_text(&["team-a", "x", "a-b-c"], &["Team", "", "-a", "a_b"]));
        self.maybe(&mut metadata, "labels", |_| json!({"app": "x"}));
        let mut spec = json!({});
        self.auth(&mut spec);
        let count = self.any_of(&[1, 1, 2, 3]) + if self.should_be_wrong() { 20 } else { 0 };
        let names: Vec<String> = (0..count).map(|n| self.deployment_name(n)).collect();
        self.maybe(&mut spec, "traffic", |g| g.traffic(&names));
        if self.should_be_wrong() {
            spec["mirrorTraffic"] = json!({ names[0].clone(): self.rng.random_range(-1..60) });
        }
        self.maybe(&mut spec, "cors", Self::cors);
        if self.should_be_wrong() {
            spec["bandwidthLimitBytesPerSecond"] = json!(5_000_000);
        }
        spec["deployments"] = names.iter().map(|name| self.deployment(name)).collect();
        let mut document = json!({
            "apiVersion": self.pick_text(&["inference-router.dev/v1alpha1"], &["v1", ""]),
            "kind": self.pick_text(&["OnlineEndpoint"], &["onlineEndpoint", "Deployment"]),
            "metadata": metadata,
            "spec": spec,
        });
        if self.should_be_wrong() {
            self.break_somewhere(&mut document);
        }
        document
    }

    fn should_be_wrong(&mut self) -> bool {
        self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) == 0
    }

    fn any_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.rng.random_range(0..all.len())].clone()
    }

    /// Mostly one of `right`.
    fn pick_text(&mut self, right: &[&str], wrong: &[&str]) -> Value {
        let from = if self.should_be_wrong() { wrong } else { right };
        json!(self.any_of(from))
    }

    /// Mostly in `right`, at its ends more often than by chance.
    fn number(&mut self, right: std::ops::RangeInclusive<i64>) -> Value {
        let (least, most) = (*right.start(), *right.end());
        let odd = [json!(least - 1), json!(most + 1), json!(i64::MAX), json!(1.5), json!("1"), Value::Null];
        match self.rng.random_range(0..4 * FIELDS_PER_WRONG_VALUE) {
            0 => self.any_of(&odd),
            n if n % 4 == 0 => json!(least),
            n if n % 4 == 1 => json!(most),
            _ => json!(self.rng.random_range(right)),
        }
    }

    fn maybe(&mut self, into: &mut Value, field: &str, value: impl FnOnce(&mut Self) -> Value) {
        if self.rng.random_bool(0.5) {
            into[field] = value(self);
        }
    }

    fn name(&mut self) -> String {
        let unique = format!("e{:x}", self.number);
        match self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) {
            0 => self.any_of(&["ab", "1abc", "a--b", "abc-", "a_bc", "a/b", "", "äbc"]).to_owned(),
            1 => format!("{unique}{}", "x".repeat(40)),
            n if n % 3 == 0 => format!("{unique}-{}", self.any_of(&["Model", "A1", "z-9"])),
            n if n % 3 == 1 => format!("{unique}{}", "x".repeat(32 - unique.len())),
            _ => format!("{unique}-x"),
        }
    }

    fn deployment_name(&mut self, number: usize) -> String {
        if self.should_be_wrong() {
            return self.any_of(&["blue", "x", "Blue-", "no", ""]).to_owned();
        }
        // Also such as YAML 1.1 would take for something else.
        [["blue", "Green", "off", "yes", "a-1", "true"][number % 6].to_owned(), format!("d{number}-x")][number / 6 % 2]
            .clone()
    }

    fn auth(&mut self, spec: &mut Value) {
        match self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) {
            0 => spec["authMode"] = self.any_of(&["aml_token", "aad_token", "Key", ""]).into(),
            1 => spec["keys"] = self.any_of(&[json!({}), json!({"secretRef": {"name": "x"}}), json!([])]),
            n if n % 4 == 0 => spec["authMode"] = "none".into(),
            n => {
                if n % 4 > 1 {
                    spec["authMode"] = ["key", "aml_token"][(n % 4 - 2) as usize].into();
                }
                spec["keys"] = json!({ "primary": self.key() });
                self.maybe(&mut spec["keys"], "secondary", Self::key);
            }
        }
    }

    fn key(&mut self) -> Value {
        match self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) {
            0 => json!({"value": "short"}),
            1 => json!({"value": "has blanks in it, and more"}),
            2 => json!({"value": "a-key-0123456789", "file": "both"}),
            3 => json!({"env": "NOT_SET"}),
            n if n % 5 == 0 => json!({ "file": self.key_file }),
            n => json!({ "value": format!("key-{}-{n}-!#$%&'*+.^_`|~()/:;<=>?@[]{{}}", self.number) }),
        }
    }

    fn traffic(&mut self, names: &[String]) -> Value {
        let mut traffic = Map::new();
        let mut left = self.any_of(&[100, 100, 100, 0]);
        for (number, name) in names.iter().enumerate() {
            let share = if number + 1 == names.len() { left } else { self.rng.random_range(0..=left) };
            left -= share;
            if share > 0 || self.rng.random_bool(0.5) {
                let name = if self.rng.random_bool(0.2) { name.to_ascii_uppercase() } else { name.clone() };
                traffic.insert(name, json!(share));
            }
        }
        if self.should_be_wrong() {
            let wrong = [("nobody", json!(0)), ("blue", json!(101)), ("blue", json!(-1)), ("x", json!("10"))];
            let (name, share) = self.any_of(&wrong);
            traffic.insert(name.to_owned(), share);
        }
        traffic.into()
    }

    fn cors(&mut self) -> Value {
        let origin = self.pick_text(
            &["https://app.example", "http://localhost:3000", "*", "https://APP.example:443"],
            &["app.example", "https://*.example", "https://app.example/", "null"],
        );
        let mut cors = json!({ "allowOrigins": [origin] });
        self.maybe(&mut cors, "allowMethods", |g| {
            json!([g.pick_text(&["POST", "get", "M-X"], &["CONNECT", "a b", "*"])])
        });
        self.maybe(&mut cors, "allowHeaders", |g| json!([g.pick_text(&["x-a", "*", "Authorization"], &["a b", ""])]));
        self.maybe(&mut cors, "exposeHeaders", |g| json!([g.pick_text(&["x-a", "X-B"], &["a:b", ""])]));
        if cors["allowOrigins"][0] != "*" || self.should_be_wrong() {
            self.maybe(&mut cors, "allowCredentials", |g| g.rng.random_bool(0.5).into());
        }
        self.maybe(&mut cors, "maxAgeSeconds", |g| g.number(0..=86_400));
        cors
    }

    fn deployment(&mut self, name: &str) -> Value {
        let mut deployment = json!({ "name": name });
        match self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) {
            0 => {
                deployment["instances"] =
                    self.any_of(&[json!([]), json!(["nowhere"]), json!(["http://x:1"]), json!([null])])
            }
            1 => deployment["targetRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}),
            2 => {}
            n if n % 8 == 0 => {
                deployment["process"] = json!({"command": ["model", "--port", "{port}"]});
                deployment["scaleSettings"] = json!({"instanceCount": 0});
            }
            _ => {
                deployment["instances"] = json!([self.model]);
                self.maybe(&mut deployment, "scaleSettings", |g| {
                    g.any_of(&[json!({"instanceCount": 1}), json!({"type": "default"}), json!({"maxInstances": 3})])
                });
            }
        }
        self.maybe(&mut deployment, "scoringPath", Self::path);
        self.maybe(&mut deployment, "swaggerPath", Self::path);
        self.maybe(&mut deployment, "forwardAuthorization", |g| g.rng.random_bool(0.5).into());
        self.maybe(&mut deployment, "host", |g| {
            g.pick_text(
                &["model.internal", "Model:80", "[::1]:1", "10.0.0.1"],
                &["a b", "http://x", "x:0", "", "x\r\ny: z"],
            )
        });
        self.maybe(&mut deployment, "requestSettings", Self::requests);
        if deployment.get("process").is_some() {
            // None runs, and requests wait for one.
            deployment["requestSettings"]["maxQueueWaitMs"] = json!(0);
        }
        if self.should_be_wrong() {
            deployment["port"] = json!(8080);
        }
        deployment
    }

    fn path(&mut self) -> Value {
        if self.rng.random_range(0..FIELDS_PER_WRONG_VALUE) == 0 {
            return json!(format!("/{}", "x".repeat(self.any_of(&[1_000, 4_095, 4_096, 70_000]))));
        }
        self.pick_text(
            &[
                "/",
                "/score",
                "/v1/m:predict",
                "/a%20b/%C3%A4",
                "/~x/(y)/@z,;=+*!$&'",
                "//",
                "/...",
                "/a/./b",
                "/a/../b",
            ],
            &[
                "",
                "score",
                "/a b",
                "/a?b",
                "/a#b",
                "/ä",
                "/%",
                "/a%2",
                "/a\nb",
                "/a\0b",
                "/a|b",
                "/{x}",
                "/a\"b",
                "http://x/",
            ],
        )
    }

    /// A model that is given a millisecond may well be too late: no time here is shorter than any answer.
    fn requests(&mut self) -> Value {
        let mut requests = json!({});
        self.maybe(&mut requests, "requestTimeoutMs", |g| g.any_of(&[json!(10_000), json!(300_000)]));
        self.maybe(&mut requests, "streamIdleTimeoutMs", |g| g.any_of(&[json!(10_000), json!(86_400_000)]));
        self.maybe(&mut requests, "maxConcurrentRequestsPerInstance", |g| g.number(1..=1_000_000));
        self.maybe(&mut requests, "maxQueueWaitMs", |g| g.number(0..=300_000));
        self.maybe(&mut requests, "maxQueueLength", |g| g.number(0..=1_000_000));
        if self.should_be_wrong() {
            requests["requestTimeoutMs"] = self.any_of(&[json!(0), json!(300_001), json!("5s")]);
        }
        requests
    }

    /// Puts something where it does not belong.
    fn break_somewhere(&mut self, document: &mut Value) {
        let places =
            ["", "/metadata", "/spec", "/spec/keys", "/spec/keys/primary", "/spec/traffic", "/spec/deployments/0"];
        let odd = [Value::Null, json!(7), json!("text"), json!([]), json!({}), json!({"unknown": 1}), json!([{}])];
        let (place, value) = (self.any_of(&places), self.any_of(&odd));
        if let Some(found) = document.pointer_mut(place) {
            match found {
                Value::Object(map) if self.rng.random_bool(0.5) => drop(map.insert("unknwon".to_owned(), value)),
                found => *found = value,
            }
        }
    }
}
