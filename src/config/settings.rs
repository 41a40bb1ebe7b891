//! The daemon's own settings: `weir.yaml`, then `WEIR_*` variables, which win.
//!
//! All mistakes are reported, each with the file or the variable that holds it. Nothing is read
//! that was not asked for: without `--config` there is no file.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Config, Environment, File, FileFormat, Source, Value, ValueKind};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::component::{ByteSize, HumanDuration, nearest};
use crate::observe::logs::LogStyle;

/// What the variables of the settings begin with.
const PREFIX: &str = "WEIR_";

/// A pipeline with less holds hardly a batch.
const SMALLEST_MEMORY: ByteSize = ByteSize(1 << 20);

/// All settings, in the order in which the documents list them.
const KEYS: &[&str] = &["data_dir", "memory", "grace", "instance", "admin.listen", "log.level", "log.format"];

/// The settings of the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the process keeps what must survive it: positions, its identity.
    pub data_dir: PathBuf,
    /// The memory budget of a pipeline that names none, in bytes.
    pub memory: u64,
    /// How long a stop may take.
    pub grace: Duration,
    /// Who this process is among those that run the same pipelines; `None` takes the identity kept in the data folder.
    pub instance: Option<String>,
    /// The admin server.
    pub admin: AdminSettings,
    /// The log.
    pub log: LogSettings,
}

/// The settings of the admin server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// `HOST:PORT`; `None` for no server.
    pub listen: Option<String>,
}

/// The settings of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    /// What is logged: a level, or levels by module (`info,weir::topology=debug`).
    pub level: Targets,
    /// How a line looks.
    pub style: LogStyle,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("weir-data"),
            memory: 32 << 20,
            grace: Duration::from_secs(30),
            instance: None,
            admin: AdminSettings { listen: Some("127.0.0.1:9464".to_owned()) },
            log: LogSettings { level: Targets::new().with_default(LevelFilter::INFO), style: LogStyle::Text },
        }
    }
}

/// All mistakes in the settings, one on each line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Reads the file, if one is named, and the variables of this process.
    ///
    /// # Errors
    /// All mistakes in them.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let text = match file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                SettingsError(vec![format!("{}: cannot read the settings: {error}", path.display())])
            })?),
            None => None,
        };
        let mut variables = HashMap::new();
        let mut unreadable = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| is_setting(name)) else { continue };
            match value.into_string() {
                Ok(value) => drop(variables.insert(name.to_owned(), value)),
                Err(_) => unreadable.push(format!("{name}: the value is not valid UTF-8")),
            }
        }
        if !unreadable.is_empty() {
            return Err(SettingsError(unreadable));
        }
        Self::read(file.zip(text.as_deref()), variables)
    }

    /// Reads a file's text and variables.
    fn read(file: Option<(&Path, &str)>, variables: HashMap<String, String>) -> Result<Self, SettingsError> {
        let name = file.map_or_else(String::new, |(path, _)| path.display().to_string());
        let mut builder = Config::builder();
        if let Some((_, text)) = file {
            builder = builder.add_source(File::from_str(text, FileFormat::Yaml));
        }
        let variables = Environment::with_prefix("WEIR")
            .prefix_separator("_")
            .separator("__")
            .ignore_empty(true)
            .source(Some(variables));
        let tree = builder
            .add_source(variables)
            .build()
            .and_then(|config| config.collect())
            .map_err(|error| SettingsError(vec![format!("{name}: {error}")]))?;

        let mut values = Vec::new();
        for (key, value) in tree {
            flatten(key, value, &mut values);
        }
        values.sort_by(|(left, _), (right, _)| left.cmp(right));

        let mut settings = Self::default();
        let mut mistakes = Vec::new();
        for (key, value) in values {
            let place = Place { file: &name, key: &key, from_file: value.origin().is_none() };
            if let Err(mistake) = settings.set(&key, value.kind) {
                mistakes.push(match mistake {
                    Mistake::Unknown => unknown(&place),
                    Mistake::Value(what) => format!("{place}: {what}"),
                });
            }
        }
        if mistakes.is_empty() { Ok(settings) } else { Err(SettingsError(mistakes)) }
    }

    fn set(&mut self, key: &str, value: ValueKind) -> Result<(), Mistake> {
        if !KEYS.contains(&key) {
            return Err(Mistake::Unknown);
        }
        let Some(text) = scalar(value)? else { return Ok(()) };
        match key {
            "data_dir" => self.data_dir = PathBuf::from(text),
            "memory" => self.memory = bytes(&text)?,
            "grace" => self.grace = duration(&text)?,
            "instance" => self.instance = Some(instance(text)?),
            "admin.listen" => self.admin.listen = listen(text)?,
            "log.level" => self.log.level = levels(&text)?,
            _ => self.log.style = style(&text)?,
        }
        Ok(())
    }
}

/// What is wrong with one entry.
enum Mistake {
    Unknown,
    Value(String),
}

impl From<String> for Mistake {
    fn from(what: String) -> Self {
        Self::Value(what)
    }
}

/// Where an entry stands, in the words of who wrote it.
struct Place<'a> {
    file: &'a str,
    key: &'a str,
    from_file: bool,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from_file { write!(f, "{}: `{}`", self.file, self.key) } else { f.write_str(&variable(self.key)) }
    }
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn unknown(place: &Place<'_>) -> String {
    // A single underscore where two belong is the likeliest slip, and no distance of its own.
    let flat = |key: &str| key.replace(['.', '_'], "");
    let same = KEYS.iter().copied().find(|known| flat(known) == flat(place.key));
    let nearest = same.or_else(|| nearest(place.key, KEYS.iter().copied()));
    let spell = |key: &str| if place.from_file { key.to_owned() } else { variable(key) };
    let help = match nearest {
        Some(nearest) => format!("did you mean `{}`?", spell(nearest)),
        None => format!("known are {}", KEYS.iter().map(|key| spell(key)).collect::<Vec<_>>().join(", ")),
    };
    format!("{place}: there is no such setting; {help}")
}

/// Whether a variable of the process is a setting. Kubernetes describes each service of the namespace by variables that
/// begin with its name, so a service named `weir` sets `WEIR_PORT`, `WEIR_SERVICE_HOST` and more: those are not ours.
fn is_setting(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let words: Vec<&str> = rest.split('_').collect();
    let describes_a_service = words.last() == Some(&"PORT")
        || words.windows(2).any(|pair| pair[0] == "SERVICE" && matches!(pair[1], "HOST" | "PORT"))
        || words.windows(2).any(|pair| pair[0] == "PORT" && pair[1].bytes().all(|byte| byte.is_ascii_digit()));
    !describes_a_service
}

fn flatten(key: String, value: Value, into: &mut Vec<(String, Value)>) {
    let origin = value.origin().map(str::to_owned);
    match value.kind {
        ValueKind::Table(table) if !table.is_empty() && !KEYS.contains(&key.as_str()) => {
            for (name, value) in table {
                flatten(format!("{key}.{name}"), value, into);
            }
        }
        // A section that is there and empty says nothing.
        ValueKind::Nil | ValueKind::Table(_) if KEYS.iter().any(|known| known.starts_with(&format!("{key}."))) => {}
        kind => into.push((key, Value::new(origin.as_ref(), kind))),
    }
}

/// The text of a single value; `None` if it is not set.
fn scalar(value: ValueKind) -> Result<Option<String>, String> {
    match value {
        ValueKind::Nil => Ok(None),
        ValueKind::Table(_) => Err("expected a single value, found a map".to_owned()),
        ValueKind::Array(_) => Err("expected a single value, found a list".to_owned()),
        single => Ok(Some(single.to_string())),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let ByteSize(bytes) =
        ByteSize::parse(text).ok_or_else(|| format!("expected a size such as `64MiB`, found `{text}`"))?;
    if bytes < SMALLEST_MEMORY.0 {
        return Err(format!("expected at least `{SMALLEST_MEMORY}`, found `{text}`"));
    }
    Ok(bytes)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = HumanDuration::parse(text);
    duration.map(|HumanDuration(duration)| duration).ok_or_else(|| {
        format!("expected a duration with its unit (`ms`, `s`, `m`, `h` or `d`), such as `30s`, found `{text}`")
    })
}

fn instance(text: String) -> Result<String, String> {
    // It becomes a part of Kafka's group instance id and transactional id, and of metrics.
    let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    if text.len() <= 100 && text.chars().all(fits) {
        Ok(text)
    } else {
        Err(format!("expected at most 100 letters, digits, `.`, `_` and `-`, found `{text}`"))
    }
}

fn listen(text: String) -> Result<Option<String>, String> {
    // YAML 1.1 reads `off` as false, YAML 1.2 as a word.
    if text == "off" || text == "false" {
        return Ok(None);
    }
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| u16::from_str(port));
    match port {
        Some(Ok(_)) => Ok(Some(text)),
        _ => Err(format!("expected `HOST:PORT` or `off`, found `{text}`")),
    }
}

fn levels(text: &str) -> Result<Targets, String> {
    // `Targets` takes an unknown word for the name of a module, and would then log nothing at all.
    let is_level = |word: &str| LevelFilter::from_str(word).is_ok() && !word.bytes().all(|byte| byte.is_ascii_digit());
    let expected = "expected a level (error, warn, info, debug, trace, off) or levels by module \
                    (`info,weir::topology=debug`)";
    for part in text.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        if !is_level(level) {
            return Err(format!("{expected}, found `{part}`"));
        }
    }
    Targets::from_str(text).map_err(|_| format!("{expected}, found `{text}`"))
}

fn style(text: &str) -> Result<LogStyle, String> {
    match text {
        "text" => Ok(LogStyle::Text),
        "json" => Ok(LogStyle::Json),
        _ => Err(format!("expected `text` or `json`, found `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Settings::read(Some((Path::new("weir.yaml"), yaml)), variables).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_gives_the_defaults() {
        let settings = Settings::read(None, HashMap::new()).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(read("", &[]).unwrap(), Settings::default());
        assert_eq!(read("admin:\nlog: {}\n", &[]).map(|settings| settings.grace), Ok(Duration::from_secs(30)));
    }

    #[test]
    fn a_file_sets_every_setting() {
        let yaml = "
data_dir: /var/lib/weir
memory: 64MiB
grace: 2m
instance: weir-0
admin: { listen: '0.0.0.0:9000' }
log: { level: 'warn,weir::topology=debug', format: json }
";
        let settings = read(yaml, &[]).unwrap();
        assert_eq!(settings.data_dir, Path::new("/var/lib/weir"));
        assert_eq!(settings.memory, 64 << 20);
        assert_eq!(settings.grace, Duration::from_mins(2));
        assert_eq!(settings.instance.as_deref(), Some("weir-0"));
        assert_eq!(settings.admin.listen.as_deref(), Some("0.0.0.0:9000"));
        assert_eq!(settings.log.style, LogStyle::Json);
        assert!(settings.log.level.would_enable("weir::topology::stage", &tracing::Level::DEBUG));
        assert!(!settings.log.level.would_enable("weir::state", &tracing::Level::INFO));
    }

    #[test]
    fn a_variable_wins_over_the_file() {
        let settings = read(
            "admin: { listen: '127.0.0.1:1' }\nlog: { format: json }\ngrace: 1s\n",
            &[
                ("WEIR_ADMIN__LISTEN", "off"),
                ("WEIR_GRACE", "250ms"),
                ("WEIR_MEMORY", "1048576"),
                ("WEIR_INSTANCE", ""),
            ],
        )
        .unwrap();
        assert_eq!(settings.admin.listen, None);
        assert_eq!(settings.grace, Duration::from_millis(250));
        assert_eq!(settings.memory, 1 << 20);
        assert_eq!(settings.instance, None, "an empty variable is not set");
        assert_eq!(settings.log.style, LogStyle::Json);
    }

    #[test]
    fn an_unquoted_off_turns_the_admin_server_off() {
        assert_eq!(read("admin: { listen: off }", &[]).unwrap().admin.listen, None);
        assert_eq!(read("admin: { listen: false }", &[]).unwrap().admin.listen, None);
    }

    #[test]
    fn all_mistakes_are_reported_each_with_its_place() {
        let error = read(
            "data_dirs: x\nadmin: { listen: here, port: 1 }\nlog: 3\ngrace: 30\nmemory: { a: 1 }\n",
            &[("WEIR_LOG_LEVEL", "info"), ("WEIR_LOG__FORMAT", "xml"), ("WEIR_INSTANCE", "a b")],
        )
        .unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "weir.yaml: `admin.listen`: expected `HOST:PORT` or `off`, found `here`",
                "weir.yaml: `admin.port`: there is no such setting; known are data_dir, memory, grace, instance, \
                 admin.listen, log.level, log.format",
                "weir.yaml: `data_dirs`: there is no such setting; did you mean `data_dir`?",
                "weir.yaml: `grace`: expected a duration with its unit (`ms`, `s`, `m`, `h` or `d`), such as `30s`, found \
                 `30`",
                "WEIR_INSTANCE: expected at most 100 letters, digits, `.`, `_` and `-`, found `a b`",
                "WEIR_LOG__FORMAT: expected `text` or `json`, found `xml`",
                "WEIR_LOG_LEVEL: there is no such setting; did you mean `WEIR_LOG__LEVEL`?",
                "weir.yaml: `memory`: expected a single value, found a map",
            ]
        );
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused() {
        for (yaml, part) in [
            ("memory: 64M", "expected a size such as `64MiB`, found `64M`"),
            ("memory: lots", "expected a size such as `64MiB`, found `lots`"),
            ("memory: -5", "expected a size such as `64MiB`, found `-5`"),
            ("memory: 1KiB", "expected at least `1MiB`"),
            ("memory: 99999999999GiB", "expected a size"),
            ("grace: 5y", "expected a duration with its unit"),
            ("log: { level: loud }", "found `loud`"),
            ("log: { level: 'info,weir=3' }", "found `weir=3`"),
            ("data_dir: [a]", "expected a single value, found a list"),
            ("admin: off", "there is no such setting"),
            ("admin: { listen: ':80' }", "expected `HOST:PORT`"),
            ("admin: { listen: 'a:99999' }", "expected `HOST:PORT`"),
            ("a: [", "weir.yaml: "),
        ] {
            let error = read(yaml, &[]).unwrap_err();
            assert!(error.contains(part), "{yaml}: {error}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_a_service_named_weir_is_not_a_setting() {
        for name in [
            "WEIR_PORT",
            "WEIR_PORT_9464_TCP",
            "WEIR_PORT_9464_TCP_ADDR",
            "WEIR_SERVICE_HOST",
            "WEIR_SERVICE_PORT",
            "WEIR_SERVICE_PORT_ADMIN",
            "WEIR_METRICS_SERVICE_HOST",
        ] {
            assert!(!is_setting(name), "{name}");
        }
        for name in ["WEIR_DATA_DIR", "WEIR_ADMIN__LISTEN", "WEIR_ADMIN_LISTEN", "WEIR_LOG__LEVEL"] {
            assert!(is_setting(name), "{name}");
        }
    }
}
