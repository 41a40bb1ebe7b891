//! The pipelines that the project shows: each compiles as it stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir::cli::load::{Checked, check_files};
use weir::config::{Environment, SourceFile, diagnostic, load};
use weir::plan::{CompileOptions, Guarantee, compile};

/// Only these variables are set.
struct Variables(&'static [(&'static str, &'static str)]);

impl Environment for Variables {
    fn var(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn secret_file(&self, path: &Path) -> Result<String, String> {
        Err(format!("{} is not there", path.display()))
    }
}

const WITH_A_BROKER: Variables = Variables(&[("KAFKA_BROKERS", "broker:9092")]);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checked(path: &str, environment: &dyn Environment) -> Checked {
    check_files(&[root().join(path)], environment, &CompileOptions::new(2))
}

/// Compiles the text of a pipeline file, and returns how many pipelines are in it.
fn compiled(name: &str, text: &str) -> usize {
    let file = Arc::new(SourceFile { path: PathBuf::from(name), text: text.to_owned() });
    let (documents, mut problems) = load(Arc::clone(&file), &WITH_A_BROKER);
    let plans = documents.iter().filter_map(|document| {
        let (plan, found) = compile(document, &CompileOptions::new(2));
        problems.extend(found);
        plan
    });
    let plans = plans.count();
    let words: Vec<String> = problems.iter().map(|problem| diagnostic::render(&file, problem)).collect();
    assert!(words.is_empty(), "{}\n{text}", words.join("\n"));
    plans
}

#[test]
fn every_example_compiles_without_a_variable_set_and_says_what_it_shows() {
    let examples = checked("pipelines", &Variables(&[]));
    assert!(!examples.has_errors(), "{}", examples.render());
    assert!(examples.files.len() >= 6);
    for report in &examples.files {
        assert!(report.file.text.starts_with("# "), "{} does not say what it shows", report.file.path.display());
    }
}

#[test]
fn one_variable_points_the_quickstart_at_a_real_broker() {
    let embedded = checked("pipelines/quickstart.yaml", &Variables(&[]));
    let real = checked("pipelines/quickstart.yaml", &WITH_A_BROKER);
    assert_eq!((embedded.plans.len(), real.plans.len()), (3, 3), "{}{}", embedded.render(), real.render());
}

#[test]
fn the_exactly_once_example_is_a_transaction() {
    let checked = checked("pipelines/exactly-once.yaml", &WITH_A_BROKER);
    let plan = checked.plans.first().unwrap_or_else(|| panic!("{}", checked.render()));
    assert_eq!((plan.guarantee, plan.transactional), (Guarantee::ExactlyOnce, true));
}

#[test]
fn the_buffer_example_is_two_domains_and_the_slow_one_stands_behind_the_buffer() {
    let checked = checked("pipelines/buffer.yaml", &Variables(&[]));
    let plan = checked.plans.first().unwrap_or_else(|| panic!("{}", checked.render()));
    let domains = plan.domains();
    let sinks: Vec<Vec<&str>> =
        domains.iter().map(|domain| domain.plan.sinks.iter().map(|sink| &*sink.name).collect()).collect();
    assert_eq!(sinks, [vec!["archive", "watch.buffer"], vec!["watch"]]);
}

#[test]
fn the_pipelines_in_the_documents_compile() {
    for document in ["README.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let pipelines: Vec<&str> = blocks.filter(|block| block.contains("sources:")).collect();
        assert!(!pipelines.is_empty(), "{document} shows no pipeline");
        for pipeline in pipelines {
            assert_eq!(compiled(document, pipeline), 1);
        }
    }
}
