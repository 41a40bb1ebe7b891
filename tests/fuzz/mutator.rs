//! Makes inputs that are almost right: pieces of the corpus cut, doubled, crossed and spoilt, from a seed.

use fastrand::Rng;

/// Numbers where arithmetic breaks.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "255",
    "256",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e309",
    "-1e-400",
    "0.1e+1",
    "1E0000000000000000000001",
    "00",
    ".5",
    "NaN",
];

/// Bytes that mean something somewhere.
const BYTES: &[u8] = b"\"\\{}[]:,'#-&*!|>%@` \n\r\t\0\x1f\x7f\x80\xc0\xe2\xed\xf4\xff.$~";

/// What opens and closes, for nesting.
const PAIRS: &[(&str, &str)] = &[("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("- ", "\n"), ("\"", "\""), ("{a: ", "}")];

/// The longest mutant.
const LONGEST: usize = 64 << 10;

pub(crate) struct Mutator<'a> {
    random: Rng,
    corpus: &'a [Vec<u8>],
    tokens: &'a [&'static str],
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(seed: u64, corpus: &'a [Vec<u8>], tokens: &'a [&'static str]) -> Self {
        Self { random: Rng::with_seed(seed), corpus, tokens }
    }

    /// The next mutant.
    pub(crate) fn mutant(&mut self) -> Vec<u8> {
        let mut input = self.one_of_corpus().to_vec();
        // Few changes mostly: an input that is almost right goes deepest.
        let changes = 1 + self.random.usize(..4).min(self.random.usize(..8));
        for _ in 0..changes {
            self.change(&mut input);
            input.truncate(LONGEST);
        }
        input
    }

    fn one_of_corpus(&mut self) -> &'a [u8] {
        &self.corpus[self.random.usize(..self.corpus.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.random.u8(..12) {
            0 if !input.is_empty() => {
                let at = self.random.usize(..input.len());
                input[at] ^= 1 << self.random.u8(..8);
            }
            1 if !input.is_empty() => {
                let at = self.random.usize(..input.len());
                input[at] = self.byte();
            }
            2 => {
                let at = self.place(input);
                let byte = self.byte();
                input.insert(at, byte);
            }
            3 => drop(input.drain(self.range(input))),
            4 => {
                let copy = input[self.range(input)].to_vec();
                let at = self.place(input);
                insert(input, at, &copy);
            }
            5 => {
                // The front of one and the back of another.
                let other = self.one_of_corpus();
                let (cut, from) = (self.place(input), self.place(other));
                input.truncate(cut);
                input.extend_from_slice(&other[from..]);
            }
            6 => {
                let other = self.one_of_corpus();
                let piece = other[self.range(other)].to_vec();
                let at = self.place(input);
                insert(input, at, &piece);
            }
            7 | 8 if !self.tokens.is_empty() => {
                let token = self.tokens[self.random.usize(..self.tokens.len())];
                self.put(input, token.as_bytes());
            }
            9 => {
                let number = NUMBERS[self.random.usize(..NUMBERS.len())];
                match self.number_in(input) {
                    Some(range) => drop(input.splice(range, number.bytes())),
                    None => self.put(input, number.as_bytes()),
                }
            }
            10 => {
                let (open, close) = PAIRS[self.random.usize(..PAIRS.len())];
                let depth = [1, 3, 127, 128, 129, 300, 2000][self.random.usize(..7)];
                let range = self.range(input);
                insert(input, range.end, close.repeat(depth).as_bytes());
                insert(input, range.start, open.repeat(depth).as_bytes());
            }
            _ => {
                let cut = self.place(input);
                input.truncate(cut);
            }
        }
    }

    fn byte(&mut self) -> u8 {
        if self.random.bool() { BYTES[self.random.usize(..BYTES.len())] } else { self.random.u8(..) }
    }

    fn place(&mut self, input: &[u8]) -> usize {
        self.random.usize(..=input.len())
    }

    /// A piece, short ones first.
    fn range(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let start = self.place(input);
        let longest = (input.len() - start).min(1 << self.random.u32(..12));
        start..start + self.random.usize(..=longest)
    }

    /// Inserts, or replaces a piece.
    fn put(&mut self, input: &mut Vec<u8>, bytes: &[u8]) {
        if self.random.bool() {
            let at = self.place(input);
            insert(input, at, bytes);
        } else {
            let range = self.range(input);
            input.splice(range, bytes.iter().copied());
        }
    }

    /// Where a number stands.
    fn number_in(&mut self, input: &[u8]) -> Option<std::ops::Range<usize>> {
        let from = self.place(input);
        let start = from + input[from..].iter().position(u8::is_ascii_digit)?;
        let len = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        Some(start..start + len)
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// A name for an input.
pub(crate) fn hash(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
