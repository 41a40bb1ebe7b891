//! The functions of the language: VRL's standard library without what could tell one run of a record from another.
//!
//! A replay after a crash must give what the first run gave (rule 23). Therefore `now()` is the record's arrival time,
//! and what is random is seeded by the record's source, partition and offset, and by the stage. `parse_klog`,
//! `parse_linux_authorization` and `parse_syslog` remain as VRL has them: for text without a year they take this year.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use vrl::compiler::function::Example;
use vrl::compiler::state::TypeState;
use vrl::path::{OwnedTargetPath, OwnedValuePath};
use vrl::prelude::{
    ArgumentList, Compiled, Context, Expression, Function, FunctionCompileContext, FunctionExpression, NotNan,
    Parameter, Resolved, TypeDef,
};
use vrl::stdlib;
use vrl::value::Value;

/// All functions that a program may call.
pub(super) fn all() -> &'static [Box<dyn Function>] {
    static ALL: LazyLock<Vec<Box<dyn Function>>> = LazyLock::new(|| {
        let replacements: Vec<Box<dyn Function>> = vec![
            Box::new(Now),
            Box::new(Random::Bool(stdlib::RandomBool)),
            Box::new(Random::Bytes(stdlib::RandomBytes)),
            Box::new(Random::Float(stdlib::RandomFloat)),
            Box::new(Random::Int(stdlib::RandomInt)),
            Box::new(Random::UuidV4(stdlib::UuidV4)),
            Box::new(Random::UuidV7(stdlib::UuidV7)),
            Box::new(Noted(stdlib::Del, "target", Note::Write)),
            Box::new(Noted(stdlib::Unnest, "path", Note::ReadRoot)),
        ];
        let replaced: BTreeSet<_> = replacements.iter().map(|function| function.identifier()).collect();
        let kept = stdlib::all().into_iter().filter(|function| !replaced.contains(function.identifier()));
        kept.chain(replacements).collect()
    });
    &ALL
}

/// What VRL's compiler does not tell of a program by itself. It travels in the compiler's config.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Paths that `del` removes.
    pub(super) deleted: Vec<OwnedTargetPath>,
    /// Whole trees that are read although the program names a path within.
    pub(super) roots_read: Vec<OwnedTargetPath>,
}

/// The metadata field under which the target gives the time of `now()`.
pub(super) static ARRIVAL: LazyLock<OwnedTargetPath> = LazyLock::new(|| hidden("arrival"));
/// The metadata field under which the target gives a new number at each mutable look.
pub(super) static DRAW: LazyLock<OwnedTargetPath> = LazyLock::new(|| hidden("draw"));

/// A metadata field that no record has, so that a program that names it does not compile.
pub(super) fn hidden(name: &str) -> OwnedTargetPath {
    OwnedTargetPath::metadata(OwnedValuePath::single_field(&format!("{HIDDEN}{name}")))
}

/// What the names of such fields begin with.
pub(super) const HIDDEN: &str = "weir ";

/// A function of the standard library whose use is noted.
#[derive(Debug, Clone, Copy)]
struct Noted<F>(F, &'static str, Note);

#[derive(Debug, Clone, Copy)]
enum Note {
    Write,
    ReadRoot,
}

macro_rules! described_as {
    ($self:ident => $inner:expr) => {
        fn identifier(&$self) -> &'static str { $inner.identifier() }
        fn usage(&$self) -> &'static str { $inner.usage() }
        fn category(&$self) -> &'static str { $inner.category() }
        fn internal_failure_reasons(&$self) -> &'static [&'static str] { $inner.internal_failure_reasons() }
        fn return_kind(&$self) -> u16 { $inner.return_kind() }
        fn return_rules(&$self) -> &'static [&'static str] { $inner.return_rules() }
        fn notices(&$self) -> &'static [&'static str] { $inner.notices() }
        fn pure(&$self) -> bool { $inner.pure() }
        fn parameters(&$self) -> &'static [Parameter] { $inner.parameters() }
        fn examples(&$self) -> &'static [Example] { $inner.examples() }
    };
}

impl<F: Function> Function for Noted<F> {
    described_as!(self => self.0);

    fn compile(&self, state: &TypeState, cx: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        if let Ok(query) = arguments.required_query(self.1)
            && let Some(path) = query.external_path()
            && let Some(notes) = cx.get_external_context_mut::<Notes>()
        {
            match self.2 {
                Note::Write => notes.deleted.push(path.clone()),
                Note::ReadRoot => notes.roots_read.push(OwnedTargetPath::root(path.prefix)),
            }
        }
        self.0.compile(state, cx, arguments)
    }
}

/// `now()`: the record's arrival time.
#[derive(Debug, Clone, Copy)]
struct Now;

impl Function for Now {
    described_as!(self => stdlib::Now);

    fn compile(&self, _: &TypeState, _: &mut FunctionCompileContext, _: ArgumentList) -> Compiled {
        Ok(NowCall.as_expr())
    }
}

#[derive(Debug, Clone)]
struct NowCall;

impl FunctionExpression for NowCall {
    fn resolve(&self, cx: &mut Context) -> Resolved {
        arrival(cx)
    }

    fn type_def(&self, _: &TypeState) -> TypeDef {
        TypeDef::timestamp()
    }
}

fn arrival(cx: &Context) -> Resolved {
    Ok(cx.target().target_get(&ARRIVAL)?.cloned().unwrap_or(Value::Null))
}

/// A function that draws random numbers.
#[derive(Debug, Clone, Copy)]
enum Random {
    Bool(stdlib::RandomBool),
    Bytes(stdlib::RandomBytes),
    Float(stdlib::RandomFloat),
    Int(stdlib::RandomInt),
    UuidV4(stdlib::UuidV4),
    UuidV7(stdlib::UuidV7),
}

impl Random {
    fn original(&self) -> &dyn Function {
        match self {
            Self::Bool(function) => function,
            Self::Bytes(function) => function,
            Self::Float(function) => function,
            Self::Int(function) => function,
            Self::UuidV4(function) => function,
            Self::UuidV7(function) => function,
        }
    }
}

impl Function for Random {
    described_as!(self => self.original());

    /// Compiles the original too: it checks constant arguments, and knows the type of the call.
    fn compile(&self, state: &TypeState, cx: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        let typed_as = self.original().compile(state, cx, arguments.clone())?;
        let call = match self {
            Self::Bool(_) => Draw::Bool,
            Self::Bytes(_) => Draw::Bytes { length: arguments.required("length") },
            Self::Float(_) => Draw::Float { min: arguments.required("min"), max: arguments.required("max") },
            Self::Int(_) => Draw::Int { min: arguments.required("min"), max: arguments.required("max") },
            Self::UuidV4(_) => Draw::UuidV4,
            Self::UuidV7(_) => Draw::UuidV7 { time: arguments.optional("timestamp") },
        };
        Ok(RandomCall { typed_as, call }.as_expr())
    }
}

#[derive(Debug, Clone)]
struct RandomCall {
    typed_as: Box<dyn Expression>,
    call: Draw,
}

#[derive(Debug, Clone)]
enum Draw {
    Bool,
    Bytes { length: Box<dyn Expression> },
    Float { min: Box<dyn Expression>, max: Box<dyn Expression> },
    Int { min: Box<dyn Expression>, max: Box<dyn Expression> },
    UuidV4,
    UuidV7 { time: Option<Box<dyn Expression>> },
}

/// As in VRL: what `random_bytes` gives at most.
const RANDOM_BYTES_MAX: i64 = 64 * 1024;

impl FunctionExpression for RandomCall {
    fn resolve(&self, cx: &mut Context) -> Resolved {
        match &self.call {
            Draw::Bool => Ok(generator(cx)?.bool().into()),
            Draw::Bytes { length } => {
                let length = integer(&length.resolve(cx)?)?;
                if !(0..=RANDOM_BYTES_MAX).contains(&length) {
                    return Err("length must be between 0 and 64k".into());
                }
                let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
                generator(cx)?.fill(&mut bytes);
                Ok(Value::Bytes(bytes.into()))
            }
            Draw::Float { min, max } => {
                let (min, max) = (float(&min.resolve(cx)?)?, float(&max.resolve(cx)?)?);
                if max <= min {
                    return Err("max must be greater than min".into());
                }
                let number = min + (max - min) * generator(cx)?.f64();
                Ok(Value::Float(NotNan::new(number.min(max.next_down())).map_err(|_| "max and min must be finite")?))
            }
            Draw::Int { min, max } => {
                let (min, max) = (integer(&min.resolve(cx)?)?, integer(&max.resolve(cx)?)?);
                if max <= min {
                    return Err("max must be greater than min".into());
                }
                Ok(generator(cx)?.i64(min..max).into())
            }
            Draw::UuidV4 => Ok(uuid_text(uuid::Builder::from_random_bytes(generator(cx)?.u128(..).to_be_bytes()))),
            Draw::UuidV7 { time } => {
                let time = match time {
                    Some(time) => time.resolve(cx)?,
                    None => arrival(cx)?,
                };
                let millis = time.as_timestamp().map(chrono::DateTime::timestamp_millis);
                let millis =
                    millis.and_then(|millis| u64::try_from(millis).ok()).ok_or("the timestamp is before 1970")?;
                let mut random = [0; 10];
                generator(cx)?.fill(&mut random);
                Ok(uuid_text(uuid::Builder::from_unix_timestamp_millis(millis, &random)))
            }
        }
    }

    fn type_def(&self, state: &TypeState) -> TypeDef {
        self.typed_as.type_def(state)
    }
}

fn uuid_text(builder: uuid::Builder) -> Value {
    Value::from(builder.into_uuid().hyphenated().encode_lower(&mut [0; uuid::fmt::Hyphenated::LENGTH]) as &str)
}

/// A generator that no other draw of this record, or of another, has been given.
fn generator(cx: &mut Context) -> Result<fastrand::Rng, String> {
    let seed = cx.target_mut().target_get_mut(&DRAW)?.and_then(|seed| seed.as_integer()).unwrap_or_default();
    Ok(fastrand::Rng::with_seed(seed.cast_unsigned()))
}

fn integer(value: &Value) -> Result<i64, String> {
    value.as_integer().ok_or_else(|| format!("expected integer, got {}", value.kind_str()))
}

fn float(value: &Value) -> Result<f64, String> {
    let number = value.as_float().ok_or_else(|| format!("expected float, got {}", value.kind_str()))?;
    Ok(number.into_inner())
}
