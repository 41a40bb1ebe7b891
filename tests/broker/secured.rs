//! A broker with a second listener on which clients must prove who they are, and rights that can be taken and given.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Broker, free_port, install};

/// What may be done with a topic, by the protocol's number for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right {
    /// Read its records.
    Read = 3,
    /// Write records.
    Write = 4,
    /// Ask for its settings.
    DescribeConfigs = 10,
}

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const TOPIC: u8 = 2;
const LITERAL: u8 = 3;
const ALL: u8 = 2;
const DENY: u8 = 2;
const ALLOW: u8 = 3;

/// A broker that trusts those who come by its plain listener, and nobody else.
pub(crate) struct SecuredBroker {
    /// The broker, for those whom it trusts.
    pub(crate) broker: Broker,
    secure_port: u16,
}

impl SecuredBroker {
    /// Starts one. No user is known to it yet.
    pub(crate) fn start() -> Self {
        let secure_port = free_port();
        let secure = format!("SECURE://127.0.0.1:{secure_port}");
        let listeners = format!("PLAINTEXT://127.0.0.1:{{port}},{secure},CONTROLLER://127.0.0.1:{{controller}}");
        let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},{secure}");
        let broker = Broker::start_new_with(&[
            ("listeners", &listeners),
            ("advertised.listeners", &advertised),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-256"),
            (
                "listener.name.secure.scram-sha-256.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            ),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("super.users", "User:ANONYMOUS"),
            ("allow.everyone.if.no.acl.found", "true"),
        ]);
        Self { broker, secure_port }
    }

    /// Where clients must prove who they are.
    pub(crate) fn secure_address(&self) -> String {
        format!("127.0.0.1:{}", self.secure_port)
    }

    /// Lets a user in with this password from now on, and with no other.
    pub(crate) fn set_password(&self, user: &str, password: &str) {
        let jars = install::kafka_jars();
        let output = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .arg(jars.join("*"))
            .args(["kafka.admin.ConfigCommand", "--bootstrap-server", self.broker.address()])
            .args(["--alter", "--entity-type", "users", "--entity-name", user])
            .arg("--add-config")
            .arg(format!("SCRAM-SHA-256=[iterations=4096,password={password}]"))
            .stdin(Stdio::null())
            .output()
            .expect("`java` was found before");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Gives a user every right to a topic. Without that, taking one would take all.
    pub(crate) fn grant(&self, user: &str, topic: &str) {
        self.ask(CREATE_ACLS, &rule(user, topic, ALL, ALLOW));
    }

    /// Takes a right to a topic from a user.
    pub(crate) fn deny(&self, user: &str, topic: &str, right: Right) {
        self.ask(CREATE_ACLS, &rule(user, topic, right as u8, DENY));
    }

    /// Gives it back.
    pub(crate) fn allow_again(&self, user: &str, topic: &str, right: Right) {
        self.ask(DELETE_ACLS, &rule(user, topic, right as u8, DENY));
    }

    /// One request in version 1 of its kind, by the plain listener. The answer begins with the throttle time and the number
    /// of results, of which there must be one, without an error.
    fn ask(&self, kind: i16, body: &[u8]) {
        let mut request = [kind.to_be_bytes(), 1_i16.to_be_bytes()].concat();
        request.extend(7_i32.to_be_bytes());
        put(&mut request, "test");
        request.extend(body);
        let mut stream = TcpStream::connect(self.broker.address()).expect("the broker listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out may be set");
        stream.write_all(&i32::try_from(request.len()).expect("it is small").to_be_bytes()).expect("the broker reads");
        stream.write_all(&request).expect("the broker reads");
        let mut answer = [0; 4 + 4 + 4 + 4 + 2];
        stream.read_exact(&mut answer).expect("the broker answers");
        assert_eq!(answer[12..], [0, 0, 0, 1, 0, 0], "the broker refused");
    }
}

/// One rule, or the filter that finds it: both are written alike.
fn rule(user: &str, topic: &str, operation: u8, permission: u8) -> Vec<u8> {
    let mut body = 1_i32.to_be_bytes().to_vec();
    body.push(TOPIC);
    put(&mut body, topic);
    body.push(LITERAL);
    put(&mut body, &format!("User:{user}"));
    put(&mut body, "*");
    body.extend([operation, permission]);
    body
}

/// A string, as the protocol writes it.
fn put(request: &mut Vec<u8>, text: &str) {
    request.extend(i16::try_from(text.len()).expect("it is short").to_be_bytes());
    request.extend(text.as_bytes());
}
