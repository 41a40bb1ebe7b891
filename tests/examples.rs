//! What the README and `pipelines/` show, run by the real binary as a newcomer would. No broker is needed.

mod broker;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use broker::wait::wait_for;
use process::Home;
use serde_json::Value;
use weir::cli::load::check_files;
use weir::config::Environment;
use weir::plan::CompileOptions;

/// A newcomer waits for some seconds; a machine that is busy with other tests takes more.
const SECONDS: Duration = Duration::from_secs(30);
/// Long before the grace of 30 s is over.
const STOP: Duration = Duration::from_secs(10);

/// A machine without variables.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn secret_file(&self, path: &Path) -> Result<String, String> {
        Err(format!("{} is not there", path.display()))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A home with a copy of `pipelines/`, and a `target` for what they write, as where the project was just built.
fn home() -> Home {
    let mut home = Home::new();
    // As if it was not set: an empty variable takes the default too.
    home.set("KAFKA_BROKERS", "").set("OUT", "");
    fs::create_dir(home.path("target")).expect("the home can be written");
    for folder in ["pipelines", "pipelines/data"] {
        fs::create_dir(home.path(folder)).expect("the home can be written");
        for entry in fs::read_dir(root().join(folder)).expect("the project can be read") {
            let path = entry.expect("the project can be read").path();
            if path.is_file() {
                let name = path.file_name().expect("a file has a name");
                fs::copy(&path, home.path(folder).join(name)).expect("the home can be written");
            }
        }
    }
    home
}

/// What the first `cargo run` of the README hands to the binary.
fn first_command() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).expect("the project can be read");
    let command = readme.lines().find_map(|line| line.strip_prefix("cargo run --release -- "));
    command.expect("the README begins with a command").split(' ').map(str::to_owned).collect()
}

#[test]
fn the_first_command_of_the_readme_shows_priced_orders_within_seconds_and_says_that_nothing_survives() {
    let home = home();
    let command = first_command();
    assert_eq!(command, ["run", "pipelines/quickstart.yaml"]);
    let mut weir = home.start_command(&command.iter().map(String::as_str).collect::<Vec<_>>());
    // What it prints is in its log too.
    let orders = wait_for("three priced orders", SECONDS, || {
        weir.must_run();
        let log = weir.log();
        let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
        let orders: Vec<Value> = whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (orders.len() >= 3).then_some(orders)
    });
    for order in orders {
        let number = |field: &str| match &order[field] {
            Value::String(text) => text.parse::<f64>().ok(),
            value => value.as_f64(),
        };
        let price = number("price").and_then(|price| Some(price * number("qty")?)).expect("it has a price");
        assert!(number("total").is_some_and(|total| (total - price).abs() < 0.01), "{order}");
        assert!(order.get("status").is_none(), "{order}");
    }
    let told = weir.log();
    let told = told.lines().find(|line| line.contains("nothing in it survives this process"));
    assert!(told.is_some_and(|line| line.contains("WARN")), "{}", weir.log());
    assert_eq!(weir.stop(STOP), 0, "{}", weir.log());
    assert_eq!(weir.log().matches("stopped: all that it read is committed").count(), 3, "{}", weir.log());
}

/// The examples that end by themselves and need nothing from outside.
fn finite_examples() -> Vec<PathBuf> {
    let examples = check_files(&[root().join("pipelines")], &Nothing, &CompileOptions::new(2));
    let mut finite = BTreeMap::new();
    for plan in &examples.plans {
        let mut sinks = plan.sinks.iter().chain(&plan.dead_letter);
        let ends = plan.sources.iter().all(|source| source.compiled.traits.finite);
        *finite.entry(plan.file.clone()).or_insert(true) &= ends && sinks.all(|sink| sink.kind != "kafka");
    }
    finite.into_iter().filter_map(|(file, finite)| finite.then_some(file)).collect()
}

/// How many lines each of them writes to which file; what it prints is `-`.
const WRITTEN: &[(&str, &[(&str, usize)])] = &[
    ("access-log.yaml", &[("alerts.ndjson", 535), ("requests.ndjson", 378)]),
    ("buffer.yaml", &[("archive.ndjson", 1_000), ("-", 1_000)]),
    // Of six lines two are refused, and one is dropped on purpose.
    ("dead-letter.yaml", &[("good-orders.ndjson", 3), ("refused-orders.ndjson", 2)]),
    ("fan-out.yaml", &[("anonymous-orders.ndjson", 1_000), ("large-orders.ndjson", 108)]),
    ("file-to-file.yaml", &[("priced-orders.ndjson", 4)]),
];

#[test]
fn every_finite_example_ends_in_order_writes_what_it_says_and_has_nothing_to_do_when_it_is_run_again() {
    let finite = finite_examples();
    assert!(finite.len() >= WRITTEN.len(), "{finite:?}");
    for path in finite {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let written = WRITTEN.iter().find(|(example, _)| *example == name);
        let (_, written) =
            written.unwrap_or_else(|| panic!("say in `WRITTEN` of tests/examples.rs what {name} writes"));
        let home = home();
        let mut printed = 0;
        for _ in 0..2 {
            let output = home.run(&["run", &format!("pipelines/{name}")]);
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{name}:\n{log}");
            printed += String::from_utf8_lossy(&output.stdout).lines().count();
            for (file, lines) in *written {
                let text = || fs::read_to_string(home.path("target").join(file)).unwrap_or_default();
                let came = if *file == "-" { printed } else { text().lines().count() };
                assert_eq!(came, *lines, "{name}: {file}\n{log}");
            }
        }
    }
}
