use super::*;

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { namespace: namespace.into(), name: name.into() }
}

fn workload(namespace: &str, name: &str) -> Arc<WorkloadKey> {
    Arc::new(WorkloadKey { group: "apps".into(), kind: "Deployment".into(), key: key(namespace, name) })
}

fn pod(uid: &str, app: &str, ip: &str) -> Pod {
    let labels = [("app".into(), app.into()), ("tier".into(), "gold".into())];
    Pod { uid: uid.into(), labels: labels.into(), ip: ip.parse().ok(), is_ready: true, is_terminating: false }
}

fn selector(name: &str, value: &str) -> Option<Selector> {
    Some(Selector::from(Expression::Equal(name.to_owned(), value.to_owned())))
}

fn describe_changes(changes: Vec<PodChange>) -> Vec<String> {
    let one = |change: PodChange| {
        let ip = change.ip.map_or("gone".to_owned(), |ip| ip.to_string());
        format!("{}/{} {} {ip}", change.workload.key.namespace, change.workload.key.name, change.uid)
    };
    let mut shown: Vec<String> = changes.into_iter().map(one).collect();
    shown.sort();
    shown
}

impl PodIndex {
    fn apply_pod(&mut self, key: &ObjectKey, pod: Option<Pod>) -> Vec<PodChange> {
        let event = match pod {
            Some(pod) => Event::Apply((key.clone(), pod)),
            None => Event::Delete((key.clone(), super::tests::pod("", "", ""))),
        };
        self.apply_event(&"".into(), event).0
    }
}

#[test]
fn pods_and_workloads_find_each_other_whoever_comes_first() {
    let (early, late, elsewhere) = (workload("a", "early"), workload("a", "late"), workload("b", "early"));
    let mut pods = PodIndex::default();
    assert_eq!(describe_changes(pods.set_selector(&early, selector("app", "x"))), [""; 0]);
    assert_eq!(describe_changes(pods.set_selector(&elsewhere, selector("app", "x"))), [""; 0]);
    assert_eq!(
        describe_changes(pods.apply_pod(&key("a", "p"), Some(pod("1", "x", "10.0.0.1")))),
        ["a/early 1 10.0.0.1"]
    );
    assert_eq!(describe_changes(pods.apply_pod(&key("a", "q"), Some(pod("2", "y", "10.0.0.2")))), [""; 0]);
    assert_eq!(describe_changes(pods.set_selector(&late, selector("app", "y"))), ["a/late 2 10.0.0.2"]);
    assert_eq!(describe_changes(pods.set_selector(&late, None)), ["a/late 2 gone"]);
    assert_eq!(describe_changes(pods.apply_pod(&key("a", "p"), None)), ["a/early 1 gone"]);
}

#[test]
fn a_pod_takes_requests_while_it_is_ready_and_stays() {
    let one = workload("a", "one");
    let mut pods = PodIndex::default();
    pods.set_selector(&one, selector("app", "x"));
    let (at, ready) = (key("a", "p"), pod("1", "x", "10.0.0.1"));
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(Pod { ip: None, ..ready.clone() }))), [""; 0]);
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(Pod { is_ready: false, ..ready.clone() }))), [""; 0]);
    assert_eq!(pods.pending_count(&one), 1);
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(ready.clone()))), ["a/one 1 10.0.0.1"]);
    assert_eq!(pods.pending_count(&one), 0);
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(Pod { is_ready: false, ..ready.clone() }))), ["a/one 1 gone"]);
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(ready.clone()))), ["a/one 1 10.0.0.1"]);
    assert_eq!(
        describe_changes(pods.apply_pod(&at, Some(Pod { is_terminating: true, ..ready.clone() }))),
        ["a/one 1 gone"]
    );
    assert_eq!((pods.pending_count(&one), pods.available_pods(&one).count()), (0, 0), "it will not come back");
    // Another pod of the same name, as a StatefulSet creates it.
    assert_eq!(describe_changes(pods.apply_pod(&at, Some(pod("2", "x", "10.0.0.9")))), ["a/one 2 10.0.0.9"]);
    assert_eq!(
        describe_changes(pods.apply_pod(&at, Some(pod("3", "x", "10.0.0.10")))),
        ["a/one 2 gone", "a/one 3 10.0.0.10"]
    );
}

#[test]
fn labels_and_selectors_may_change() {
    let (x, y, all) = (workload("a", "x"), workload("a", "y"), workload("a", "all"));
    let mut pods = PodIndex::default();
    pods.set_selector(&x, selector("app", "x"));
    pods.set_selector(&y, selector("app", "y"));
    let exists = Selector::from(Expression::Exists("tier".to_owned()));
    assert_eq!(describe_changes(pods.set_selector(&all, Some(exists))), [""; 0]);
    let at = key("a", "p");
    assert_eq!(
        describe_changes(pods.apply_pod(&at, Some(pod("1", "x", "10.0.0.1")))),
        ["a/all 1 10.0.0.1", "a/x 1 10.0.0.1"]
    );
    assert_eq!(
        describe_changes(pods.apply_pod(&at, Some(pod("1", "y", "10.0.0.1")))),
        ["a/x 1 gone", "a/y 1 10.0.0.1"]
    );
    assert_eq!(describe_changes(pods.set_selector(&y, selector("app", "z"))), ["a/y 1 gone"]);
    assert_eq!(describe_changes(pods.set_selector(&y, selector("tier", "gold"))), ["a/y 1 10.0.0.1"]);
    assert_eq!(describe_changes(pods.set_selector(&y, selector("tier", "gold"))), [""; 0], "nothing has changed");
}
