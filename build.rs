//! Says what the machine lacks before a dependency fails for want of it. The Kafka client is C: it is built with `make`, and
//! with the headers of OpenSSL and zlib.

use std::io::Write as _;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=OPENSSL_DIR");
    let mut missing = Vec::new();
    if !runs("cc", "--version") {
        missing.push("a C compiler, `cc` (Debian: build-essential)");
    }
    if !runs("make", "--version") {
        missing.push("`make` (Debian: build-essential)");
    }
    if missing.is_empty() {
        // An OpenSSL in another place is named by this variable.
        if std::env::var_os("OPENSSL_DIR").is_none() && !has_header("openssl/ssl.h") {
            missing.push("the headers of OpenSSL (Debian: libssl-dev and pkg-config)");
        }
        if !has_header("zlib.h") {
            missing.push("the headers of zlib (Debian: zlib1g-dev)");
        }
    }
    for what in missing {
        println!("cargo::error=this machine lacks {what}; the README names everything that the build needs");
    }
}

fn runs(program: &str, argument: &str) -> bool {
    let status = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn has_header(header: &str) -> bool {
    let compiler = Command::new("cc")
        .args(["-E", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut compiler) = compiler else { return false };
    let written = compiler.stdin.take().is_some_and(|mut stdin| writeln!(stdin, "#include <{header}>").is_ok());
    written && compiler.wait().is_ok_and(|status| status.success())
}
