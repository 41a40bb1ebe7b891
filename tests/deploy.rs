//! The Kubernetes manifests against the real binary: what they set exists, what they probe answers, and a pod has the time
//! that it needs to stop. No broker is needed.

mod broker;
mod process;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::wait::wait_until;
use process::Home;
use weir::component::HumanDuration;
use weir::component::node::{Kind, Node};
use weir::config::{Environment, SourceFile, load};

const SOON: Duration = Duration::from_mins(1);

/// What the tests set themselves, for a place of their own.
const PLACES: [&str; 2] = ["WEIR_DATA_DIR", "WEIR_ADMIN__LISTEN"];

/// A machine without variables: a manifest stands for itself.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn secret_file(&self, path: &Path) -> Result<String, String> {
        Err(format!("{} is not there", path.display()))
    }
}

/// A manifest, of one document.
fn manifest(name: &str) -> Node {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(name);
    let text = fs::read_to_string(&path).expect("the project can be read");
    let (mut documents, problems) = load(Arc::new(SourceFile { path, text }), &Nothing);
    assert!(problems.is_empty(), "{problems:?}");
    documents.remove(0).root
}

/// What stands at a path of keys; a number is a place in a list.
fn at<'a>(node: &'a Node, path: &str) -> &'a Node {
    path.split(' ').fold(node, |node, step| {
        let found = match (&node.kind, step.parse::<usize>()) {
            (Kind::List(items), Ok(number)) => items.get(number),
            _ => node.get(step),
        };
        found.unwrap_or_else(|| panic!("no `{step}` of `{path}`"))
    })
}

fn text<'a>(node: &'a Node, path: &str) -> &'a str {
    at(node, path).text().unwrap_or_else(|| panic!("`{path}` is no text"))
}

fn items(node: &Node) -> &[Node] {
    let Kind::List(items) = &node.kind else { panic!("a list, not {}", node.describe()) };
    items
}

fn pod() -> Node {
    at(&manifest("statefulset.yaml"), "spec template spec").clone()
}

/// The variables of the container. What Kubernetes fills in is the name of a pod.
fn variables(pod: &Node) -> Vec<(String, String)> {
    let value = |variable: &Node| {
        let filled = || {
            assert_eq!(text(variable, "valueFrom fieldRef fieldPath"), "metadata.name");
            "weir-0".to_owned()
        };
        variable.get("value").and_then(Node::text).map_or_else(filled, str::to_owned)
    };
    let env = items(at(pod, "containers 0 env")).iter();
    env.map(|variable| (text(variable, "name").to_owned(), value(variable))).collect()
}

fn variable(pod: &Node, name: &str) -> String {
    let found = variables(pod).into_iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("{name} is not set")).1
}

/// A home with the variables of the container, and a pipeline that needs nothing from outside.
fn home(pod: &Node) -> Home {
    let mut home = Home::new();
    for (name, value) in variables(pod).into_iter().filter(|(name, _)| !PLACES.contains(&name.as_str())) {
        home.set(&name, &value);
    }
    home.write(
        "endless.yaml",
        "sources:\n  in:\n    generate: { shape: orders, rate: 10 }\nsinks:\n  out:\n    blackhole: {}\n",
    );
    home
}

#[test]
fn the_pod_sets_what_the_binary_knows_and_probes_what_it_answers() {
    let pod = pod();
    for name in PLACES {
        variable(&pod, name);
    }
    // It refuses a setting that it does not know.
    let home_of_pod = home(&pod);
    let mut weir = home_of_pod.start("endless.yaml");
    weir.wait_ready();
    assert!(weir.log().contains("weir-0"), "it is who the pod is: {}", weir.log());
    let scraped = at(&manifest("statefulset.yaml"), "spec template metadata annotations").clone();
    let container = at(&pod, "containers 0");
    for path in [
        text(container, "readinessProbe httpGet path"),
        text(container, "livenessProbe httpGet path"),
        text(&scraped, "prometheus.io/path"),
    ] {
        wait_until(&format!("{path} to say that all is well"), SOON, || {
            weir.must_run();
            weir.get(path).is_some_and(|(status, _)| status == 200)
        });
    }
    assert_eq!(weir.stop(SOON), 0);

    let mut misspelt = home(&pod);
    misspelt.set("WEIR_GRACES", "30s");
    assert_eq!(misspelt.run(&["run", "endless.yaml"]).status.code(), Some(2), "it would have told");
}

#[test]
fn the_ports_of_the_manifests_are_the_one_that_the_admin_server_listens_on() {
    let (pod, service, set) = (pod(), manifest("service.yaml"), manifest("statefulset.yaml"));
    let listen = variable(&pod, "WEIR_ADMIN__LISTEN");
    let (host, port) = listen.rsplit_once(':').expect("an address has a port");
    assert_eq!(host, "0.0.0.0", "probes come from outside the pod");
    let container = at(&pod, "containers 0");
    assert_eq!(text(container, "ports 0 containerPort"), port);
    assert_eq!(text(&set, "spec template metadata annotations prometheus.io/port"), port);
    assert_eq!(text(&service, "spec ports 0 port"), port);
    for named in [text(container, "readinessProbe httpGet port"), text(container, "livenessProbe httpGet port")] {
        assert_eq!(named, text(container, "ports 0 name"));
    }
    assert_eq!(text(&service, "spec ports 0 targetPort"), text(container, "ports 0 name"));
    assert_eq!(text(&set, "spec serviceName"), text(&service, "metadata name"));
}

#[test]
fn a_pod_is_not_killed_before_its_grace_is_over() {
    let pod = pod();
    let seconds = |text: &str| Duration::from_secs(text.parse().expect("a number of seconds"));
    let until_killed = seconds(text(&pod, "terminationGracePeriodSeconds"));
    let before_the_signal = seconds(text(&pod, "containers 0 lifecycle preStop sleep seconds"));
    let HumanDuration(grace) = HumanDuration::parse(&variable(&pod, "WEIR_GRACE")).expect("it says its unit");
    // It tells what was left behind after the grace, and ends.
    let to_end = Duration::from_secs(5);
    assert!(
        before_the_signal + grace + to_end <= until_killed,
        "{before_the_signal:?} and {grace:?} of {until_killed:?}"
    );
}

#[test]
fn the_pipelines_and_the_data_are_where_the_binary_looks_for_them() {
    let (pod, set) = (pod(), manifest("statefulset.yaml"));
    let container = at(&pod, "containers 0");
    let mounted = |volume: &str| {
        let mut mounts = items(at(container, "volumeMounts")).iter();
        let mount = mounts.find(|mount| text(mount, "name") == volume);
        text(mount.unwrap_or_else(|| panic!("`{volume}` is not mounted")), "mountPath").to_owned()
    };
    assert_eq!(text(container, "args 0"), "run");
    assert_eq!(text(container, "args 1"), mounted(text(&pod, "volumes 0 name")));
    assert_eq!(variable(&pod, "WEIR_DATA_DIR"), mounted(text(&set, "spec volumeClaimTemplates 0 metadata name")));
    assert_eq!(text(&pod, "volumes 0 configMap name"), text(&manifest("configmap.yaml"), "metadata name"));
}

#[test]
fn the_pipelines_of_the_config_map_are_right_with_the_variables_of_the_pod() {
    let home = home(&pod());
    let Kind::Map(files) = &at(&manifest("configmap.yaml"), "data").kind.clone() else { panic!("data is a map") };
    assert!(!files.is_empty());
    for (name, text) in files {
        home.write(&name.name, text.text().expect("a file is text"));
        let checked = home.run(&["check", &name.name]);
        let told = [checked.stdout, checked.stderr].concat();
        assert!(checked.status.success(), "{}: {}", name.name, String::from_utf8_lossy(&told));
    }
}
