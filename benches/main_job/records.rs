//! The records of the benchmark, and what must become of them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// The reference map, as a pipeline file writes it. `benches/asyncio/` writes the same in Python.
pub(crate) const TRANSFORMS: &str = r#"transforms:
  - filter: .level != "debug"
  - map: |
      del(.trace)
      .env = "prod"
      .slow = to_int!(.latency_us) > 50000
      .service = upcase!(.service)
"#;

/// JSON records of about 250 bytes and nine fields; a fifth of them is dropped. A seed gives the same ones again.
pub(crate) struct Records(fastrand::Rng);

impl Records {
    /// The records, from the first on.
    pub(crate) fn new() -> Self {
        Self(fastrand::Rng::with_seed(1))
    }

    /// The next record: its key and its body.
    pub(crate) fn draw(&mut self) -> (String, String) {
        let random = &mut self.0;
        let level = ["debug", "info", "info", "warn", "error"][random.usize(0..5)];
        let service = ["checkout", "payments", "inventory", "shipping", "search"][random.usize(0..5)];
        let user = format!("user-{:06}", random.u32(0..100_000));
        let body = format!(
            concat!(
                r#"{{"ts":"2026-11-23T10:{:02}:{:02}.{:06}Z","level":"{}","service":"{}","#,
                r#""host":"web-{:02}.eu-west-1.example.org","user":"{}","status":{},"latency_us":{},"#,
                r#""trace":"{:032x}","message":"GET /api/v2/orders/{:08} answered"}}"#
            ),
            random.u8(0..60),
            random.u8(0..60),
            random.u32(0..1_000_000),
            level,
            service,
            random.u8(0..60),
            user,
            [200, 200, 200, 404, 500][random.usize(0..5)],
            random.u32(100..100_000),
            random.u128(..),
            random.u32(0..100_000_000),
        );
        (user, body)
    }
}

/// How many records come out, and a sum over their contents that does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digest {
    /// How many.
    pub(crate) count: u64,
    sum: u64,
}

impl Digest {
    /// Adds a record that came out.
    pub(crate) fn add(&mut self, body: &[u8]) {
        let fields: BTreeMap<String, Value> = serde_json::from_slice(body).expect("contestants write JSON objects");
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(&fields).expect("a tree can be written").hash(&mut hasher);
        self.sum = self.sum.wrapping_add(hasher.finish());
        self.count += 1;
    }

    /// What must come out of the first `count` records.
    pub(crate) fn expected(count: u64) -> Self {
        let mut records = Records::new();
        let mut digest = Self::default();
        for _ in 0..count {
            let (_, body) = records.draw();
            let mut fields: BTreeMap<String, Value> =
                serde_json::from_str(&body).expect("the records are JSON objects");
            if fields["level"] == "debug" {
                continue;
            }
            fields.remove("trace");
            let slow = fields["latency_us"].as_u64().is_some_and(|latency| latency > 50_000);
            let service = fields["service"].as_str().map(str::to_uppercase);
            fields.extend([
                ("env".to_owned(), "prod".into()),
                ("slow".to_owned(), slow.into()),
                ("service".to_owned(), service.into()),
            ]);
            digest.add(serde_json::to_string(&fields).expect("a tree can be written").as_bytes());
        }
        digest
    }
}
