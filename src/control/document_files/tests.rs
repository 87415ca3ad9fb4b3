use super::*;
use crate::policy::access::{Access, KeyDigest};

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn document_text(name: &str, key: &str, port: u16) -> String {
    format!(
        "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: {name}}}\nspec:\n  \
         keys: {{primary: {key}}}\n  traffic: {{blue: 100}}\n  deployments: [{{name: blue, instances: [\"127.0.0.1:{port}\"]}}]\n"
    )
}

fn document_with_key(name: &str, port: u16) -> String {
    document_text(name, &format!("{{value: {KEY}}}"), port)
}

struct DocumentFilesFixture {
    temp_dir: tempfile::TempDir,
    files: DocumentFiles,
    now: Instant,
}

impl DocumentFilesFixture {
    fn new(documents: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let environment: EnvLookup = Arc::new(|name| (name == "SET").then(|| format!("  {KEY}\n")));
        let files = DocumentFiles::new(vec![folder.path().to_owned()], environment);
        let folder = Self { temp_dir: folder, files, now: Instant::now() };
        for (name, text) in documents {
            folder.write(name, text);
        }
        folder
    }

    /// Writes beside and renames over, as editors do: a new file each time, so that no clock decides what is new.
    fn write(&self, name: &str, text: &str) {
        let beside = self.temp_dir.path().join(".beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.temp_dir.path().join(name)).unwrap();
    }

    fn load_changed(&mut self) -> DocumentSnapshot {
        self.load_if_changed().expect("a change")
    }

    /// Each look is a second after the one before.
    fn load_if_changed(&mut self) -> Option<DocumentSnapshot> {
        self.now += Duration::from_secs(1);
        self.files.load(&ScanScope::All, self.now)
    }
}

fn endpoint_names(loaded: &DocumentSnapshot) -> Vec<String> {
    loaded.endpoints.iter().map(|endpoint| endpoint.spec.name.to_string()).collect()
}

fn first_port(loaded: &DocumentSnapshot, name: &str) -> String {
    let endpoint = loaded.endpoints.iter().find(|endpoint| endpoint.spec.name.matches(name)).unwrap();
    match &endpoint.spec.deployments[0].target {
        DeploymentTarget::Instances(addresses) => addresses[0].rsplit(':').next().unwrap().to_owned(),
        DeploymentTarget::Process(_) | DeploymentTarget::Workload(_) => panic!("no address"),
    }
}

#[test]
fn only_what_changed_is_news() {
    let mut folder = DocumentFilesFixture::new(&[
        ("a.yaml", &document_with_key("one", 1)),
        ("b.yml", &document_with_key("two", 2)),
        ("notes.txt", "x"),
    ]);
    assert_eq!(endpoint_names(&folder.load_changed()), ["one", "two"]);
    assert!(folder.load_if_changed().is_none());
    folder.write(".hidden.yaml", "broken: [");
    folder.write("notes.txt", "y");
    assert!(folder.load_if_changed().is_none());
    folder.write("a.yaml", &document_with_key("one", 3));
    assert_eq!(first_port(&folder.load_changed(), "one"), "3");
    std::fs::remove_file(folder.temp_dir.path().join("b.yml")).unwrap();
    assert!(folder.load_if_changed().is_none(), "it may be on its way back");
    assert_eq!(endpoint_names(&folder.load_changed()), ["one"]);
}

#[test]
fn a_file_that_is_moved_away_for_a_moment_takes_nothing_away() {
    let mut folder = DocumentFilesFixture::new(&[("a.yaml", &document_with_key("one", 1))]);
    folder.load_changed();
    std::fs::remove_file(folder.temp_dir.path().join("a.yaml")).unwrap();
    assert!(folder.load_if_changed().is_none());
    folder.write("a.yaml", &document_with_key("one", 2));
    assert_eq!(first_port(&folder.load_changed(), "one"), "2");
}

#[test]
fn a_folder_that_cannot_be_read_takes_nothing_away() {
    let mut folder = DocumentFilesFixture::new(&[("a.yaml", &document_with_key("one", 1))]);
    folder.load_changed();
    let (here, away) = (folder.temp_dir.path().to_owned(), folder.temp_dir.path().with_extension("away"));
    std::fs::rename(&here, &away).unwrap();
    for _ in 0..2 {
        let loaded = folder.load_changed();
        assert_eq!(endpoint_names(&loaded), ["one"]);
        assert!(!loaded.problems.is_empty());
        if folder.load_if_changed().is_none() {
            break;
        }
    }
    std::fs::rename(&away, &here).unwrap();
    let loaded = folder.load_changed();
    assert_eq!((endpoint_names(&loaded).len(), loaded.problems.len()), (1, 0));
}

#[test]
fn what_is_wrong_with_keys_is_told_together_with_the_rest() {
    let broken = document_text("abc", "{env: UNSET}", 1).replace("blue: 100", "blue: 90");
    let loaded = DocumentFilesFixture::new(&[("a.yaml", &broken)]).load_changed();
    let all = loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(all.contains("UNSET is not set") && all.contains("sums to 90"), "{all}");
}

#[test]
fn a_broken_document_leaves_its_last_good_version_and_the_others_alone() {
    let both = |first: &str, second: &str| format!("{first}---\n{second}");
    let mut folder =
        DocumentFilesFixture::new(&[("a.yaml", &both(&document_with_key("one", 1), &document_with_key("two", 2)))]);
    folder.load_changed();
    let broken = document_with_key("two", 2).replace("blue: 100", "blue: 99");
    folder.write("a.yaml", &both(&document_with_key("one", 3), &broken));
    let loaded = folder.load_changed();
    assert_eq!((first_port(&loaded, "one").as_str(), first_port(&loaded, "two").as_str()), ("3", "2"));
    assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
    assert!(loaded.problems[0].to_string().contains("a.yaml"), "{}", loaded.problems[0]);
    for text in ["", "# nothing\n", "apiVersion: [", "\u{0}"] {
        folder.write("a.yaml", text);
        let loaded = folder.load_changed();
        assert_eq!(endpoint_names(&loaded), ["one", "two"], "{text:?}");
        assert!(!loaded.problems.is_empty(), "{text:?}");
    }
    folder.write("a.yaml", &document_with_key("one", 4));
    let loaded = folder.load_changed();
    assert_eq!(
        (endpoint_names(&loaded), loaded.problems.len()),
        (vec!["one".to_owned()], 0),
        "a good file is the whole truth"
    );
}

#[test]
fn keys_come_from_the_document_the_environment_or_a_file_beside_it_and_follow_it() {
    let mut folder = DocumentFilesFixture::new(&[
        ("a.yaml", &document_text("valued", &format!("{{value: {KEY}}}"), 1)),
        ("b.yaml", &document_text("from-env", "{env: SET}", 1)),
        ("c.yaml", &document_text("from-file", "{file: key.txt}", 1)),
        ("key.txt", &format!("{KEY}\n")),
    ]);
    let expected = Access::Keys(vec![KeyDigest::digest_key(KEY)]);
    let loaded = folder.load_changed();
    assert_eq!(loaded.problems, []);
    assert!(loaded.endpoints.iter().all(|endpoint| endpoint.access == expected));
    folder.write("key.txt", "another-key-0123456789abcdef");
    let loaded = folder.load_changed();
    let access = |name: &str| {
        loaded
            .endpoints
            .iter()
            .find(|endpoint| endpoint.spec.name.matches(name))
            .map(|endpoint| endpoint.access.clone())
    };
    assert_eq!(access("from-file"), Some(Access::Keys(vec![KeyDigest::digest_key("another-key-0123456789abcdef")])));
    assert_eq!(access("valued"), Some(expected));
}

#[test]
fn a_key_that_cannot_be_had_is_a_problem_that_says_what_to_do_and_never_the_key() {
    for (key, said) in [
        ("{env: UNSET}", "UNSET is not set"),
        ("{file: missing.txt}", "missing.txt cannot be read"),
        ("{file: short.txt}", "has 5 characters"),
        ("{file: spaced.txt}", "has spaces"),
    ] {
        let mut folder = DocumentFilesFixture::new(&[
            ("a.yaml", &document_text("abc", key, 1)),
            ("short.txt", "short"),
            ("spaced.txt", "two words that are one key"),
        ]);
        let loaded = folder.load_changed();
        let problem = loaded.problems[0].to_string();
        assert!(problem.contains(said) && problem.contains("spec.keys.primary"), "{problem}");
        assert!(!problem.contains("two words") && loaded.endpoints.is_empty(), "{problem}");
    }
}

#[test]
fn of_two_with_one_name_the_one_that_serves_goes_on() {
    let mut folder = DocumentFilesFixture::new(&[("b.yaml", &document_with_key("same", 1))]);
    folder.load_changed();
    folder.write("a.yaml", &document_with_key("SAME", 2));
    let loaded = folder.load_changed();
    assert_eq!(first_port(&loaded, "same"), "1");
    assert!(loaded.problems[0].to_string().contains("b.yaml") && loaded.problems[0].source.ends_with("a.yaml"));
    std::fs::remove_file(folder.temp_dir.path().join("b.yaml")).unwrap();
    assert!(folder.load_if_changed().is_none());
    let loaded = folder.load_changed();
    assert_eq!((first_port(&loaded, "same").as_str(), loaded.problems.len()), ("2", 0));
}

#[test]
fn a_swapped_link_is_a_change_as_a_config_map_makes_it() {
    use std::os::unix::fs::symlink;
    let mut folder = DocumentFilesFixture::new(&[]);
    let root = folder.temp_dir.path().to_owned();
    for (generation, port) in [("..1", 1), ("..2", 2)] {
        std::fs::create_dir(root.join(generation)).unwrap();
        std::fs::write(root.join(generation).join("a.yaml"), document_with_key("one", port)).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    assert_eq!(first_port(&folder.load_changed(), "one"), "1");
    symlink("..2", root.join("..new")).unwrap();
    std::fs::rename(root.join("..new"), root.join("..data")).unwrap();
    assert_eq!(first_port(&folder.load_changed(), "one"), "2");
}

#[test]
fn a_place_that_is_not_there_is_a_problem() {
    let mut files = DocumentFiles::new(vec!["/nowhere/at/all".into()], Arc::new(|_| None));
    let loaded = files.load(&ScanScope::All, Instant::now()).expect("news");
    assert!(loaded.problems[0].to_string().contains("/nowhere/at/all"));
}

#[test]
fn a_sign_has_only_its_path_looked_at() {
    let mut folder = DocumentFilesFixture::new(&[
        ("a.yaml", &document_with_key("one", 1)),
        ("b.yaml", &document_text("two", "{file: key}", 1)),
    ]);
    folder.write("key", KEY);
    folder.load_changed();
    folder.write("a.yaml", &document_with_key("one", 2));
    folder.write("c.yaml", &document_with_key("three", 3));
    let sign = |folder: &mut DocumentFilesFixture, name: &str| {
        let scope = ScanScope::Paths([folder.temp_dir.path().join(name)].into());
        folder.files.load(&scope, folder.now)
    };
    let loaded = sign(&mut folder, "c.yaml").unwrap();
    assert_eq!(endpoint_names(&loaded), ["one", "three", "two"]);
    assert_eq!(first_port(&sign(&mut folder, "a.yaml").unwrap(), "one"), "2");
    assert!(sign(&mut folder, "a.yaml").is_none(), "nothing has changed since");
    assert!(sign(&mut folder, ".beside").is_none(), "no document, and none names it");
    let access = |loaded: &DocumentSnapshot| {
        loaded.endpoints.iter().find(|endpoint| endpoint.spec.name.matches("two")).unwrap().access.clone()
    };
    let before = access(&loaded);
    folder.write("key", &KEY.replace('0', "1"));
    assert_ne!(access(&sign(&mut folder, "key").unwrap()), before);
}

#[test]
fn a_sign_of_a_file_that_is_gone_takes_nothing_away_at_once() {
    let mut folder = DocumentFilesFixture::new(&[("a.yaml", &document_with_key("one", 1))]);
    folder.load_changed();
    let path = folder.temp_dir.path().join("a.yaml");
    std::fs::remove_file(&path).unwrap();
    assert!(folder.files.load(&ScanScope::Paths([path].into()), folder.now).is_none());
    assert!(endpoint_names(&folder.load_changed()).is_empty(), "a second later it is missed");
}

/// A key that was given away must not stay good because something else is wrong.
#[test]
fn a_key_is_rotated_although_its_document_is_broken() {
    let whole = document_text("one", "{file: key}", 1);
    let mut folder = DocumentFilesFixture::new(&[("a.yaml", &whole)]);
    folder.write("key", KEY);
    folder.load_changed();
    folder.write("a.yaml", &whole.replace("traffic", "trafic"));
    assert!(!folder.load_changed().problems.is_empty());
    let new = KEY.replace('0', "1");
    folder.write("key", &new);
    let loaded = folder.load_changed();
    assert!(!loaded.problems.is_empty(), "the document is as broken as before");
    assert_eq!(loaded.endpoints[0].access, Access::Keys(vec![KeyDigest::digest_key(&new)]));
    // A key that cannot be had leaves the last one.
    std::fs::remove_file(folder.temp_dir.path().join("key")).unwrap();
    assert_eq!(folder.load_changed().endpoints[0].access, Access::Keys(vec![KeyDigest::digest_key(&new)]));
}

#[test]
fn what_is_no_short_file_is_no_key() {
    let mut folder = DocumentFilesFixture::new(&[("a.yaml", &document_text("one", "{file: /dev/zero}", 1))]);
    let problem = folder.load_changed().problems[0].to_string();
    assert!(problem.contains("/dev/zero") && problem.contains("regular file"), "{problem}");
    folder.write("key", &"x".repeat(1 << 21));
    folder.write("a.yaml", &document_text("one", "{file: key}", 1));
    assert!(folder.load_changed().problems[0].to_string().contains("more than"));
}
