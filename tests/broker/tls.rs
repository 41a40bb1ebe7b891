//! A broker with a second listener that speaks TLS only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Broker, free_port};

const PASSWORD: &str = "changeit";

/// A broker whose second listener shows a certificate that it has signed itself.
pub(crate) struct TlsBroker {
    /// The broker, by its plain listener.
    pub(crate) broker: Broker,
    /// Who trusts this certificate, trusts the broker.
    pub(crate) certificate: PathBuf,
    tls_port: u16,
}

impl TlsBroker {
    /// Starts one. Its keys are in `folder`.
    pub(crate) fn start(folder: &Path) -> Self {
        let (keys, certificate) = self_signed(folder, "broker");
        let tls_port = free_port();
        let tls = format!("ENCRYPTED://127.0.0.1:{tls_port}");
        let listeners = format!("PLAINTEXT://127.0.0.1:{{port}},{tls},CONTROLLER://127.0.0.1:{{controller}}");
        let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},{tls}");
        let broker = Broker::start_new_with(&[
            ("listeners", &listeners),
            ("advertised.listeners", &advertised),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,ENCRYPTED:SSL"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("listener.name.encrypted.ssl.keystore.type", "PKCS12"),
            ("listener.name.encrypted.ssl.keystore.location", &keys.display().to_string()),
            ("listener.name.encrypted.ssl.keystore.password", PASSWORD),
        ]);
        Self { broker, certificate, tls_port }
    }

    /// Where it speaks TLS.
    pub(crate) fn tls_address(&self) -> String {
        format!("127.0.0.1:{}", self.tls_port)
    }
}

/// A new pair of keys for this machine, in a key store, and its certificate as a PEM file.
pub(crate) fn self_signed(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (keys, certificate) = (folder.join(format!("{name}.p12")), folder.join(format!("{name}.pem")));
    let store = |command: &mut Command| {
        command.args(["-keystore"]).arg(&keys).args(["-storepass", PASSWORD, "-alias", name]).stdin(Stdio::null());
        let output = command.output().expect("`keytool` comes with every `java`");
        // It tells its mistakes on standard output.
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    store(
        Command::new("keytool")
            .args([
                "-genkeypair",
                "-keyalg",
                "EC",
                "-groupname",
                "secp256r1",
                "-storetype",
                "PKCS12",
                "-validity",
                "30",
            ])
            .args(["-dname", &format!("CN={name}"), "-ext", "san=ip:127.0.0.1"]),
    );
    store(Command::new("keytool").args(["-exportcert", "-rfc", "-file"]).arg(&certificate));
    (keys, certificate)
}
