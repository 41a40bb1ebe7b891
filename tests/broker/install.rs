//! Apache Kafka on this machine: fetched once from Maven Central, kept below `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version that all tests and benchmarks run against.
pub(crate) const VERSION: &str = "4.1.0";

const JAVA_AT_LEAST: u32 = 17;

/// What Maven is to fetch: the broker, its tools, all they need, and a binding for the broker's log.
fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        )
    };
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>weir</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>\
         <dependencies>{}{}</dependencies></project>\n",
        dependency("org.apache.kafka", "kafka_2.13", VERSION),
        dependency("org.slf4j", "slf4j-simple", "1.7.36"),
    )
}

/// The folder of this build: `target/`, or what stands in its place.
pub(crate) fn target_dir() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("cargo's folder for temporary files lies in the target folder").to_owned()
}

/// The folder with the jars of Apache Kafka. Fetches them if they are not there yet; when several processes come at
/// once, one fetches and the others wait.
///
/// # Panics
/// If Java or Maven is missing, or Maven cannot fetch; the text says how to help.
pub(crate) fn kafka_jars() -> PathBuf {
    require_java();
    let home = target_dir().join("kafka");
    let libs = home.join(VERSION).join("libs");
    if libs.is_dir() {
        return libs;
    }
    fs::create_dir_all(home.join(VERSION)).expect("the target folder can be written");
    let lock = File::create(home.join("lock")).expect("the target folder can be written");
    lock.lock().expect("the file system of the target folder has locks");
    if !libs.is_dir() {
        fetch(&home.join("fetch"), &libs);
    }
    libs
}

/// Fetches into a folder of its own, and moves the result to its place only when it is whole.
fn fetch(work: &Path, libs: &Path) {
    eprintln!("fetching Apache Kafka {VERSION} (43 MB) from Maven Central into {}", libs.display());
    let _ = fs::remove_dir_all(work);
    fs::create_dir_all(work).expect("the target folder can be written");
    fs::write(work.join("pom.xml"), pom()).expect("the target folder can be written");
    let fetched = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(work.join("pom.xml"))
        .arg("org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies")
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", work.join("libs").display()))
        .stdin(Stdio::null())
        .output();
    let output = match fetched {
        Ok(output) => output,
        Err(error) => panic!(
            "cannot run `mvn` ({error}): the tests fetch Apache Kafka {VERSION} with Apache Maven.\n\
             help: install it, for example `apt-get install maven`, `dnf install maven` or `brew install maven`"
        ),
    };
    assert!(
        output.status.success(),
        "`mvn` could not fetch Apache Kafka {VERSION} from Maven Central.\n\
         help: it needs the network once; a proxy or mirror goes into ~/.m2/settings.xml\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(work.join("libs"), libs).expect("both folders are on one file system");
    let _ = fs::remove_dir_all(work);
}

fn require_java() {
    let help = format!(
        "help: install a Java runtime, {JAVA_AT_LEAST} or later, for example `apt-get install default-jre-headless`, \
         `dnf install java-latest-openjdk-headless` or `brew install openjdk`"
    );
    match Command::new("java").arg("-version").stdin(Stdio::null()).output() {
        Err(error) => panic!("cannot run `java` ({error}): the tests run a real Apache Kafka.\n{help}"),
        Ok(output) => {
            // It answers on its standard error: `openjdk version "17.0.15" 2025-04-15`.
            let answer = String::from_utf8_lossy(&output.stderr).into_owned();
            let found = major_version(&answer);
            assert!(
                found.is_some_and(|major| major >= JAVA_AT_LEAST),
                "Apache Kafka {VERSION} needs Java {JAVA_AT_LEAST} or later; `java -version` says: {answer}\n{help}"
            );
        }
    }
}

fn major_version(answer: &str) -> Option<u32> {
    let quoted = answer.split('"').nth(1)?;
    let mut numbers = quoted.split(['.', '-', '+']);
    match numbers.next()?.parse() {
        // Java 8 and earlier called themselves 1.8.
        Ok(1) => numbers.next()?.parse().ok(),
        number => number.ok(),
    }
}
