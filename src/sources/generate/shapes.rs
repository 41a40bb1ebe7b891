//! The shapes: JSON written straight into the batch, a function of the seed and the record's number.

use fastrand::Rng;

use super::Shape;

/// 2026-01-01T00:00:00Z, in milliseconds since the Unix epoch: times in a record follow from its number.
const FIRST_MOMENT: u64 = 1_767_225_600_000;

/// Appends a record's body.
pub(super) fn write(shape: Shape, seed: u64, number: u64, out: &mut Vec<u8>) {
    // Mixed, so that neighbours have nothing in common.
    let mut rng = Rng::with_seed(mix(seed ^ mix(number)));
    let mut json = Json { out, first: true };
    match shape {
        Shape::Orders => order(&mut json, &mut rng, number),
        Shape::AccessLogs => access_log(&mut json, &mut rng, number),
        Shape::Reference => reference(&mut json, &mut rng, number),
    }
}

fn order(json: &mut Json<'_>, rng: &mut Rng, number: u64) {
    const COUNTRIES: &[&str] = &["DE", "FR", "US", "JP", "BR", "IN", "NL", "ES"];
    const STATUSES: &[&str] = &["paid", "paid", "paid", "pending", "cancelled"];
    json.open();
    json.key("id").number(number);
    json.key("ts").time(FIRST_MOMENT + number * 100 + rng.u64(0..100));
    json.key("user").numbered("user-", rng.u64(0..10_000), 4);
    json.key("country").text(pick(rng, COUNTRIES));
    json.key("sku").numbered("sku-", rng.u64(0..500), 3);
    json.key("qty").number(rng.u64(1..6));
    json.key("price").cents(rng.u64(99..30_000));
    json.key("status").text(pick(rng, STATUSES));
    json.close();
}

fn access_log(json: &mut Json<'_>, rng: &mut Rng, number: u64) {
    const METHODS: &[&str] = &["GET", "GET", "GET", "GET", "POST", "PUT", "DELETE"];
    const PATHS: &[&str] = &["/", "/login", "/cart", "/search?q=river", "/api/v1/items/", "/static/app.js"];
    const STATUSES: &[&str] = &["200", "200", "200", "200", "200", "204", "301", "304", "404", "500", "503"];
    const AGENTS: &[&str] = &[
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15",
        "curl/8.14.1",
    ];
    json.open();
    json.key("ts").time(FIRST_MOMENT + number * 10 + rng.u64(0..10));
    json.key("ip").address(rng.u32(..));
    json.key("method").text(pick(rng, METHODS));
    json.key("path").text(pick(rng, PATHS));
    json.key("status").plain(pick(rng, STATUSES));
    json.key("bytes").number(rng.u64(120..60_000));
    json.key("duration_ms").cents(rng.u64(20..90_000));
    json.key("agent").text(pick(rng, AGENTS));
    json.close();
}

fn reference(json: &mut Json<'_>, rng: &mut Rng, number: u64) {
    const LEVELS: &[&str] = &["debug", "info", "info", "info", "info", "info", "info", "warn", "warn", "error"];
    const SERVICES: &[&str] = &["checkout", "payments", "catalogue", "shipping", "accounts"];
    const TEXTS: &[&str] = &[
        "request handled within the time that was allowed for it",
        "cache miss, the value was fetched from the primary store",
        "the upstream answered late, the request was tried again",
        "session renewed, the old one ends when its lease has run out",
    ];
    json.open();
    json.key("ts").time(FIRST_MOMENT + number);
    json.key("level").text(pick(rng, LEVELS));
    json.key("service").text(pick(rng, SERVICES));
    json.key("host").numbered("node-", rng.u64(0..64), 2);
    json.key("user_id").number(rng.u64(100_000..10_000_000));
    json.key("trace_id").hex(rng.u64(..));
    json.key("duration_ms").cents(rng.u64(10..100_000));
    json.key("message").text(pick(rng, TEXTS));
    json.key("tags").tags(pick(rng, SERVICES), rng.u64(0..8));
    json.close();
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// The finaliser of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Writes one flat object. Nothing that it writes needs an escape.
struct Json<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Json<'_> {
    fn open(&mut self) {
        self.out.push(b'{');
    }

    fn close(&mut self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &str) -> &mut Self {
        self.out.extend_from_slice(if self.first { b"\"" } else { b",\"" });
        self.first = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self
    }

    fn plain(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.out.push(b'"');
        self.plain(text);
        self.out.push(b'"');
    }

    /// The number, with leading zeros to `width` digits.
    fn digits(&mut self, mut number: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        while number > 0 {
            at -= 1;
            digits[at] += u8::try_from(number % 10).expect("a digit");
            number /= 10;
        }
        self.out.extend_from_slice(&digits[at.min(digits.len() - width)..]);
    }

    fn number(&mut self, number: u64) {
        self.digits(number, 1);
    }

    fn numbered(&mut self, prefix: &str, number: u64, width: usize) {
        self.out.push(b'"');
        self.plain(prefix);
        self.digits(number, width);
        self.out.push(b'"');
    }

    /// A number with two decimals.
    fn cents(&mut self, cents: u64) {
        self.digits(cents / 100, 1);
        self.out.push(b'.');
        self.digits(cents % 100, 2);
    }

    fn hex(&mut self, number: u64) {
        self.out.push(b'"');
        for shift in (0..16).rev() {
            let digit = usize::try_from(number >> (4 * shift) & 15).expect("four bits");
            self.out.push(b"0123456789abcdef"[digit]);
        }
        self.out.push(b'"');
    }

    fn address(&mut self, address: u32) {
        self.out.push(b'"');
        for (index, byte) in address.to_be_bytes().into_iter().enumerate() {
            if index > 0 {
                self.out.push(b'.');
            }
            self.digits(u64::from(byte), 1);
        }
        self.out.push(b'"');
    }

    fn tags(&mut self, team: &str, zone: u64) {
        self.plain("{\"team\":");
        self.text(team);
        self.plain(",\"zone\":");
        self.number(zone);
        self.out.push(b'}');
    }

    /// RFC 3339, in UTC, with milliseconds.
    fn time(&mut self, millis: u64) {
        let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
        let (year, month, day) = civil(days);
        self.out.push(b'"');
        for (value, width, end) in [
            (year, 4, b'-'),
            (month, 2, b'-'),
            (day, 2, b'T'),
            (of_day / 3_600_000, 2, b':'),
            (of_day / 60_000 % 60, 2, b':'),
            (of_day / 1000 % 60, 2, b'.'),
            (of_day % 1000, 3, b'Z'),
        ] {
            self.digits(value, width);
            self.out.push(end);
        }
        self.out.push(b'"');
    }
}

/// The date of a day after 1970-01-01, in the Gregorian calendar: years are counted from March, so that the leap day
/// ends them.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn body(shape: Shape, seed: u64, number: u64) -> String {
        let mut out = Vec::new();
        write(shape, seed, number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_record_is_a_json_object_and_a_function_of_seed_and_number() {
        for shape in [Shape::Orders, Shape::AccessLogs, Shape::Reference] {
            let mut different = BTreeSet::new();
            for number in 0..1000 {
                let text = body(shape, 7, number);
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(value.as_object().unwrap().len() >= 8, "{text}");
                assert_eq!(text, body(shape, 7, number));
                assert_ne!(text, body(shape, 8, number));
                different.insert(text);
            }
            assert_eq!(different.len(), 1000);
        }
    }

    #[test]
    fn the_reference_shape_is_what_it_says() {
        let texts: Vec<String> = (0..10_000).map(|number| body(Shape::Reference, 1, number)).collect();
        let mean = texts.iter().map(String::len).sum::<usize>() / texts.len();
        assert!((240..=260).contains(&mean), "{mean} bytes: {}", texts[0]);
        let value: serde_json::Value = serde_json::from_str(&texts[0]).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 9);
        let debug = texts.iter().filter(|text| text.contains(r#""level":"debug""#)).count();
        assert!((800..1200).contains(&debug), "{debug}");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for millis in [0, 951_782_400_123, 951_868_800_000, FIRST_MOMENT, 4_107_542_399_999] {
            let mut out = Vec::new();
            Json { out: &mut out, first: true }.time(millis);
            let text: String = serde_json::from_slice(&out).unwrap();
            let parsed: jiff::Timestamp = text.parse().unwrap();
            assert_eq!(parsed.as_millisecond().unsigned_abs(), millis, "{text}");
        }
    }
}
