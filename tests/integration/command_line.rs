//! Exit codes and the first words of what is wrong.

use crate::process::Home;

const GOOD: &str = "
sources:
  numbers:
    generate: { shape: orders, count: 10 }
sinks:
  nowhere:
    blackhole: {}
";

fn run(home: &Home, arguments: &[&str]) -> (Option<i32>, String) {
    let output = home.run(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_wrong_file_is_told_with_its_place_and_never_runs() {
    let home = Home::new();
    home.write("wrong.yaml", GOOD.replace("blackhole", "blackhoel"));
    for command in ["run", "check", "explain"] {
        let (code, text) = run(&home, &[command, "wrong.yaml"]);
        assert_eq!(code, Some(2), "{command}: {text}");
        assert!(text.lines().any(|line| line.starts_with("wrong.yaml:7:5: error: ")), "{command}: {text}");
        assert!(text.contains("did you mean `blackhole`?"), "{command}: {text}");
    }
}

#[test]
fn one_wrong_file_among_good_ones_keeps_all_from_running() {
    let home = Home::new();
    home.write("a-good.yaml", GOOD);
    home.write("b-wrong.yaml", GOOD.replace("blackhole", "blackhoel"));
    let (code, text) = run(&home, &["run", "a-good.yaml", "b-wrong.yaml"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("b-wrong.yaml:7:5: error: "), "{text}");
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2() {
    let mut home = Home::new();
    home.write("good.yaml", GOOD);
    assert_eq!(run(&home, &["rum", "good.yaml"]).0, Some(2));
    assert_eq!(run(&home, &["run"]).0, Some(2));
    assert_eq!(run(&home, &["run", "missing.yaml"]).0, Some(2));
    home.set("WEIR_GRACE", "soon");
    let (code, text) = run(&home, &["run", "good.yaml"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("WEIR_GRACE"), "{text}");
}

#[test]
fn a_good_file_checks_and_runs_to_its_end() {
    let home = Home::new();
    home.write("good.yaml", GOOD);
    for command in ["check", "explain", "run"] {
        let (code, text) = run(&home, &[command, "good.yaml"]);
        assert_eq!(code, Some(0), "{command}: {text}");
    }
}
