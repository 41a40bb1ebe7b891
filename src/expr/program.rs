//! Programs: compiled and type-checked before anything starts.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use vrl::compiler::state::ExternalEnv;
use vrl::compiler::unused_expression_checker::check_for_unused_results;
use vrl::compiler::{CompilationResult, CompileConfig, Compiler, TypeInfo, TypeState};
use vrl::diagnostic::{Diagnostic, DiagnosticList, Span as VrlSpan};
use vrl::parser::ast::{
    Assignment, AssignmentOp, AssignmentTarget, Block, Container, Expr, Literal, Node, Program as Ast, QueryTarget,
    RootExpr,
};
use vrl::path::{OwnedSegment, OwnedTargetPath, OwnedValuePath, PathPrefix};
use vrl::value::Kind;
use vrl::value::kind::Collection;

use super::depth::{DEEPEST, too_deep};
use super::functions::{self, Notes};
use super::problems::placed;
use super::schema::Schema;
use crate::component::{CheckContext, Problem, Span, Text, Touched};

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// It says `true` or `false` of a record and changes nothing. What fails at run time rejects the record: an error
    /// is never taken for `false`.
    Condition,
    /// It changes the record by assignments; its final value is ignored. `abort` drops the record on purpose.
    Mapping,
}

/// A program that compiled. Cheap to clone.
#[derive(Clone)]
pub struct Program(pub(super) Arc<Compiled>);

pub(super) struct Compiled {
    pub(super) vrl: vrl::compiler::Program,
    /// The top-level fields that it may touch.
    pub(super) fields: Vec<NamedField>,
    /// Mixed into what is random, so that two stages draw differently.
    pub(super) salt: u64,
    touched: Touched,
    schema_after: Schema,
}

/// A top-level field that a program names.
pub(super) struct NamedField {
    pub(super) name: String,
    /// Whether wherever the program removes it, it does not look at what it removed.
    pub(super) removed_unread: bool,
}

/// The metadata of a record, as programs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    Key,
    Headers,
    Timestamp,
    Topic,
    Partition,
    Offset,
}

impl Metadata {
    pub(super) const ALL: [Self; 6] =
        [Self::Key, Self::Headers, Self::Timestamp, Self::Topic, Self::Partition, Self::Offset];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Headers => "headers",
            Self::Timestamp => "timestamp",
            Self::Topic => "topic",
            Self::Partition => "partition",
            Self::Offset => "offset",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metadata| metadata.name() == name)
    }

    pub(super) const fn is_read_only(self) -> bool {
        matches!(self, Self::Topic | Self::Partition | Self::Offset)
    }

    /// What it is when a program reads it.
    fn kind(self) -> Kind {
        match self {
            Self::Key => Kind::bytes().or_null(),
            Self::Headers => {
                let one = Kind::bytes().or_null();
                let many = Collection::from_unknown(one.clone());
                Kind::object(Collection::from_unknown(one.or_array(many)))
            }
            Self::Timestamp => Kind::timestamp(),
            Self::Topic => Kind::bytes(),
            Self::Partition | Self::Offset => Kind::integer(),
        }
    }

    fn path(self) -> OwnedTargetPath {
        OwnedTargetPath::metadata(OwnedValuePath::single_field(self.name()))
    }
}

impl Program {
    /// Compiles a program for records whose bodies are of known types. All mistakes and warnings go to the context, each
    /// at its place in the pipeline file.
    pub fn compile(text: &Text, kind: ProgramKind, schema: &Schema, cx: &mut CheckContext) -> Option<Self> {
        let mut compilation = Compilation { text, schema, cx };
        if text.value.trim().is_empty() {
            compilation.error(text.span, "the program is empty");
            return None;
        }
        if let Some(at) = too_deep(&text.value) {
            let words =
                format!("the program is nested too deeply: more than {DEEPEST} operators and brackets in each other");
            let problem = Problem::error(text.span_of(at, at + 1), words);
            compilation.cx.report(
                problem.help("split it into statements, or ask `includes([…], .field)` where one of many is meant"),
            );
            return None;
        }
        let ast = match vrl::parser::parse(&text.value) {
            Ok(ast) => ast,
            Err(error) => {
                compilation.report(&DiagnosticList::from(vec![Box::new(error) as Box<_>]));
                return None;
            }
        };
        match kind {
            ProgramKind::Condition => compilation.condition(&ast),
            ProgramKind::Mapping => compilation.mapping(ast),
        }
    }

    /// The program as VRL compiled it, for comparisons with VRL's own targets.
    #[must_use]
    pub fn vrl(&self) -> &vrl::compiler::Program {
        &self.0.vrl
    }

    /// The fields that it may read and write.
    #[must_use]
    pub fn touched(&self) -> Touched {
        self.0.touched.clone()
    }

    /// What is known of the types of the bodies that it leaves behind.
    #[must_use]
    pub fn schema_after(&self) -> Schema {
        self.0.schema_after.clone()
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("touched", &self.0.touched).finish_non_exhaustive()
    }
}

/// VRL's code for an assignment below something that is no object.
const PARENT_IS_NO_OBJECT: usize = 642;

struct Compilation<'a> {
    text: &'a Text,
    schema: &'a Schema,
    cx: &'a mut CheckContext,
}

impl Compilation<'_> {
    /// A mapping ends with a `null` that the user did not write: VRL then moves the last value into the record where it
    /// would copy it for a result that nobody reads, and warns of a last expression that does nothing.
    fn mapping(mut self, mut ast: Ast) -> Option<Program> {
        let end = VrlSpan::new(self.text.value.len(), self.text.value.len());
        let null = Expr::Literal(Node::new(end, Literal::Null));
        ast.0.push(Node::new(end, RootExpr::Expr(Node::new(end, null))));

        let config = || {
            let mut config = CompileConfig::default();
            for metadata in Metadata::ALL.into_iter().filter(|metadata| metadata.is_read_only()) {
                config.set_read_only_path(metadata.path(), true);
            }
            config
        };
        let compiled = match compile(&ast, config(), self.schema.kind.clone()) {
            // VRL asks the type of the body whether metadata may be assigned. One that may be an object says yes.
            Err(errors) if errors.iter().all(|error| self.is_doubt_about_metadata(error)) => {
                let wider = self.schema.kind.clone().or_object(Collection::json());
                compile(&ast, config(), wider).map_err(|_| errors)
            }
            compiled => compiled,
        };
        let compiled = compiled.map_err(|errors| self.report(&errors)).ok();
        self.report(&check_for_unused_results(&ast));
        let compiled = compiled?;
        self.report(&compiled.warnings);
        let after = compiled.program.final_type_info();
        let paths_fit = self.check_metadata_paths(&compiled.program, None);
        let types_fit = self.check_metadata_types(&after);
        (paths_fit && types_fit).then(|| self.finish(compiled, Some(&after), &removals(&ast)))
    }

    /// A condition that may fail is compiled again as the right side of an assignment that takes the error: its value
    /// is then the answer, or the text of the error.
    fn condition(mut self, ast: &Ast) -> Option<Program> {
        let mut config = CompileConfig::default();
        config.set_read_only();
        self.report(&check_for_unused_results(ast));
        let verdict = functions::hidden("verdict");
        let (compiled, result) = match compile(ast, config, self.schema.kind.clone()) {
            Ok(compiled) => {
                let result = compiled.program.final_type_info().result;
                (compiled, result)
            }
            Err(errors) => {
                let fallible = catching_errors(ast.clone(), &verdict);
                let compiled = fallible.map(|ast| compile(&ast, CompileConfig::default(), self.schema.kind.clone()));
                let Some(Ok(compiled)) = compiled else {
                    self.report(&errors);
                    return None;
                };
                let after = compiled.program.final_type_info();
                let kind = after.state.external.metadata_kind().at_path(&verdict.path);
                let returns = after.result.returns().clone();
                (compiled, vrl::compiler::TypeDef::from(kind).with_returns(returns))
            }
        };
        self.report(&compiled.warnings);
        if compiled.program.info().abortable {
            self.error(self.first("abort"), "a condition cannot `abort`");
            self.help("say `false` where the record does not hold");
            return None;
        }
        if !result.returns().is_never() {
            self.error(self.first("return"), "a condition cannot `return`");
            self.help("its last expression is its answer");
            return None;
        }
        if !result.is_boolean() {
            let last = ast.0.last().map_or(VrlSpan::new(0, self.text.value.len()), Node::span);
            let span = self.text.span_of(last.start(), last.end());
            self.error(span, format!("a condition must be a boolean, and this is: {}", result.kind()));
            self.help("compare it with a value, as in `.field == true`");
            return None;
        }
        let fits = self.check_metadata_paths(&compiled.program, Some(&verdict));
        fits.then(|| self.finish(compiled, None, &[]))
    }

    /// Whether VRL refused to assign to a part of the metadata because the body has no such part.
    fn is_doubt_about_metadata(&self, diagnostic: &Diagnostic) -> bool {
        let label = diagnostic.labels.first().map_or(0, |label| label.span.start());
        let before = self.text.value.get(..label).unwrap_or_default();
        let target = before.rsplit(char::is_whitespace).next().unwrap_or_default();
        let behind = self.text.value.get(label..).unwrap_or_default();
        diagnostic.code == PARENT_IS_NO_OBJECT && (target.starts_with('%') || behind.starts_with('%'))
    }

    /// A record has the metadata it has; a misspelt name would read as null for ever.
    fn check_metadata_paths(&mut self, program: &vrl::compiler::Program, verdict: Option<&OwnedTargetPath>) -> bool {
        let info = program.info();
        let paths = info.target_queries.iter().chain(&info.target_assignments);
        let unknown: BTreeSet<_> = paths
            .filter(|path| path.prefix == PathPrefix::Metadata && Some(*path) != verdict)
            .filter_map(|path| match path.path.segments.first() {
                Some(OwnedSegment::Field(name)) if Metadata::named(name).is_none() => Some(name.to_string()),
                Some(OwnedSegment::Index(index)) => Some(format!("[{index}]")),
                _ => None,
            })
            .collect();
        for name in &unknown {
            let names: Vec<_> = Metadata::ALL.iter().map(|metadata| format!("`%{}`", metadata.name())).collect();
            self.error(self.first(&format!("%{name}")), format!("a record has no metadata named `{name}`"));
            self.help(format!("it has {}", names.join(", ")));
        }
        unknown.is_empty()
    }

    /// Refuses what can never be a key or a time. What only may not be one is found out at run time.
    fn check_metadata_types(&mut self, after: &TypeInfo) -> bool {
        let kind = |metadata: Metadata| after.state.external.metadata_kind().at_path(&metadata.path().path);
        let (key, time, headers) = (kind(Metadata::Key), kind(Metadata::Timestamp), kind(Metadata::Headers));
        let before = self.cx.problems.len();
        if !(key.contains_primitive() || key.contains_undefined()) {
            self.error(self.first("%key"), format!("the key must be a string or null, and this is: {key}"));
            self.help("`encode_json` makes a string of it");
        }
        if !(time.contains_timestamp() || time.contains_undefined()) {
            self.error(self.first("%timestamp"), format!("`%timestamp` must be a timestamp, and this is: {time}"));
            self.help("`parse_timestamp` and `from_unix_timestamp` make one");
        }
        if !(headers.contains_object() || headers.contains_null() || headers.contains_undefined()) {
            self.error(self.first("%headers"), format!("`%headers` must be an object, and this is: {headers}"));
        }
        self.cx.problems.len() == before
    }

    /// `statements` are the paths of the calls of `del` that stand as statements of their own.
    fn finish(&self, compiled: CompilationResult, after: Option<&TypeInfo>, statements: &[OwnedTargetPath]) -> Program {
        let info = compiled.program.info();
        let notes = compiled.config.get_custom::<Notes>();
        let (deleted, roots_read) = notes.map_or((&[][..], &[][..]), |notes| (&notes.deleted, &notes.roots_read));
        let shown = |paths: &[OwnedTargetPath], more: &[OwnedTargetPath]| {
            paths.iter().chain(more).filter(|path| !is_hidden(path)).map(ToString::to_string).collect()
        };
        let touched = Touched {
            reads: shown(&info.target_queries, roots_read),
            writes: shown(&info.target_assignments, deleted),
        };
        let mut fields = Vec::<NamedField>::new();
        for path in info.target_queries.iter().chain(&info.target_assignments) {
            if path.prefix == PathPrefix::Event
                && let Some(OwnedSegment::Field(name)) = path.path.segments.first()
                && !fields.iter().any(|known| known.name == name.as_str())
            {
                let is_field = |path: &OwnedTargetPath| {
                    path.prefix == PathPrefix::Event
                        && matches!(path.path.segments.as_slice(), [OwnedSegment::Field(field)] if field == name)
                };
                let removals = deleted.iter().filter(|path| is_field(path)).count();
                let unread = statements.iter().filter(|path| is_field(path)).count();
                fields.push(NamedField { name: name.to_string(), removed_unread: removals == unread });
            }
        }
        let schema_after = match after {
            None => self.schema.clone(),
            // VRL does not say what the record is where the program returns early.
            Some(after) if !after.result.returns().is_never() => Schema::default(),
            Some(after) => Schema::written_as_json(after.state.external.target_kind()),
        };
        let salt = super::target::hash(self.cx.component.as_bytes(), 0);
        Program(Arc::new(Compiled { vrl: compiled.program, fields, salt, touched, schema_after }))
    }

    /// The first place of a word, for mistakes that VRL gives no place for.
    fn first(&self, word: &str) -> Span {
        match self.text.value.find(word) {
            Some(start) => self.text.span_of(start, start + word.len()),
            None => self.text.span,
        }
    }

    fn error(&mut self, span: Span, message: impl Into<String>) {
        self.cx.report(Problem::error(span, message));
    }

    /// Adds a next step to the last mistake.
    fn help(&mut self, help: impl Into<String>) {
        if let Some(problem) = self.cx.problems.last_mut() {
            problem.help.push(help.into());
        }
    }

    fn report(&mut self, diagnostics: &[Diagnostic]) {
        for diagnostic in diagnostics {
            let mut problem = placed(diagnostic, self.text);
            if self.is_doubt_about_metadata(diagnostic) {
                problem.help =
                    vec!["assign it before the body is replaced, or as a whole: `%headers = merge(…)`".to_owned()];
            }
            self.cx.report(problem);
        }
    }
}

/// Compiles a program for bodies of a kind, with the metadata that every record has.
fn compile(ast: &Ast, mut config: CompileConfig, body: Kind) -> Result<CompilationResult, DiagnosticList> {
    config.set_custom(Notes::default());
    let metadata = Metadata::ALL
        .into_iter()
        .fold(Collection::empty(), |known, metadata| known.with_known(metadata.name(), metadata.kind()));
    let external = ExternalEnv::new_with_kind(body, Kind::object(metadata));
    let state = TypeState { external, ..TypeState::default() };
    Compiler::compile(functions::all(), ast.clone(), &state, config)
}

/// The paths of the calls of `del` that stand as statements of their own at the top of a mapping.
fn removals(ast: &Ast) -> Vec<OwnedTargetPath> {
    let statements = ast.0.iter().filter_map(|root| match root.inner() {
        RootExpr::Expr(expr) => Some(expr.inner()),
        RootExpr::Error(_) => None,
    });
    let calls = statements.filter_map(|statement| match statement {
        Expr::FunctionCall(call) if call.inner().ident.inner().as_ref() == "del" => call.inner().arguments.first(),
        _ => None,
    });
    let queries = calls.filter_map(|argument| match argument.inner().expr.inner() {
        Expr::Query(query) => Some(query.inner()),
        _ => None,
    });
    let paths = queries.filter_map(|query| match query.target.inner() {
        QueryTarget::External(prefix) => Some(OwnedTargetPath { prefix: *prefix, path: query.path.inner().clone() }),
        _ => None,
    });
    paths.collect()
}

/// Whether a path is one of those that only Weir's own functions use.
fn is_hidden(path: &OwnedTargetPath) -> bool {
    path.prefix == PathPrefix::Metadata
        && path.path.segments.first().is_some_and(|segment| match segment {
            OwnedSegment::Field(name) => Metadata::named(name).is_none(),
            OwnedSegment::Index(_) => false,
        })
}

/// `condition`, as the right side of `verdict, _ = condition`. The places of all its parts stay what they are. `None` if
/// a part of it did not parse.
fn catching_errors(ast: Ast, verdict: &OwnedTargetPath) -> Option<Ast> {
    let roots = ast.0.into_iter().map(|root| match root.into_inner() {
        RootExpr::Expr(expr) => Some(expr),
        RootExpr::Error(_) => None,
    });
    let mut exprs = roots.collect::<Option<Vec<_>>>()?;
    let span = VrlSpan::new(exprs.first()?.start(), exprs.last()?.end());
    let condition = if exprs.len() == 1 {
        exprs.remove(0)
    } else {
        Node::new(span, Expr::Container(Node::new(span, Container::Block(Node::new(span, Block(exprs))))))
    };
    let assignment = Assignment::Infallible {
        ok: Node::new(span, AssignmentTarget::External(Some(verdict.clone()))),
        err: Node::new(span, AssignmentTarget::Noop),
        op: AssignmentOp::Assign,
        expr: Box::new(condition),
    };
    let root = RootExpr::Expr(Node::new(span, Expr::Assignment(Node::new(span, assignment))));
    Some(Ast(vec![Node::new(span, root)]))
}
