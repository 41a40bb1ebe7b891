//! The admin server: metrics, liveness, readiness.
//!
//! It reads what is published in [`Metrics`] and [`StatusBoard`], and nothing else. Liveness says
//! whether a new process would help, and only that: a dead broker does not make a process dead.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use axum::{Router, serve};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::status::{Phase, PipelineState, PipelineStatus, StatusBoard};
use crate::clock::Clock;
use crate::runtime::Runtime;

/// How long a scraper may hold up the end of the process.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

const INDEX: &str = "Weir

/metrics          Prometheus metrics
/live             200 as long as a new process would not help
/ready            200 once the pipelines are configured and started; the state of each
/ready/PIPELINE   200 while the pipeline makes progress; else since when, at which stage and why not
";

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[error(
    "the admin server cannot listen on `{listen}`: {source}; set `admin.listen` (WEIR_ADMIN__LISTEN) to another \
     address, or to `off`"
)]
pub struct AdminError {
    listen: String,
    source: io::Error,
}

/// The running server.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    close: CancellationToken,
    task: JoinHandle<()>,
    runtime: Runtime,
}

impl Admin {
    /// Listens on `HOST:PORT`, port 0 for any free one, and serves.
    ///
    /// # Errors
    /// If the address cannot be listened on, as when another process does.
    pub async fn start(
        listen: &str,
        metrics: Metrics,
        status: StatusBoard,
        runtime: Runtime,
    ) -> Result<Self, AdminError> {
        let failed = |source| AdminError { listen: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let close = CancellationToken::new();
        let server = serve(listener, router(Published { metrics, status, clock: runtime.clock() }))
            .with_graceful_shutdown(close.clone().cancelled_owned());
        let task = runtime.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the admin server ended");
            }
        });
        Ok(Self { address, close, task, runtime })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers what was asked, then closes.
    pub async fn stop(mut self) {
        self.close.cancel();
        tokio::select! {
            biased;
            _ = &mut self.task => {}
            () = self.runtime.sleep(CLOSE_WITHIN) => self.task.abort(),
        }
    }
}

#[derive(Clone)]
struct Published {
    metrics: Metrics,
    status: StatusBoard,
    clock: Clock,
}

fn router(published: Published) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/metrics", get(metrics))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/ready/{pipeline}", get(pipeline_ready))
        .with_state(published)
}

async fn metrics(State(published): State<Published>) -> impl IntoResponse {
    // What has failed has nobody any more who tells for how long.
    for failed in published.status.all().into_iter().filter(|status| status.state == PipelineState::Failed) {
        let seconds = published.clock.wall().as_secs_f64() - failed.since;
        published.metrics.pipeline_has_failed_for(&failed.pipeline, seconds);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], published.metrics.text())
}

async fn live(State(published): State<Published>) -> impl IntoResponse {
    match published.status.stopped_heart(published.clock.now()) {
        None => (StatusCode::OK, Json(json!({ "live": true }))),
        Some((task, age)) => {
            let body = json!({ "live": false, "task": task, "stands_still_seconds": age.as_secs() });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

async fn ready(State(published): State<Published>) -> impl IntoResponse {
    let phase = published.status.phase();
    let ready = phase == Phase::Ready;
    let body = json!({ "ready": ready, "phase": phase, "pipelines": published.status.all() });
    (code(ready), Json(body))
}

async fn pipeline_ready(State(published): State<Published>, Path(pipeline): Path<String>) -> impl IntoResponse {
    if let Some(found) = published.status.get(&pipeline) {
        return (code(found.state.is_ready()), Json(body(&found)));
    }
    let known: Vec<_> = published.status.all().into_iter().map(|known| known.pipeline).collect();
    (StatusCode::NOT_FOUND, Json(json!({ "ready": false, "error": "no pipeline has this name", "pipelines": known })))
}

fn body(status: &PipelineStatus) -> serde_json::Value {
    let mut body = json!({ "ready": status.state.is_ready() });
    if let (Some(body), Ok(serde_json::Value::Object(fields))) = (body.as_object_mut(), serde_json::to_value(status)) {
        body.extend(fields);
    }
    body
}

fn code(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use serde_json::Value;

    use super::*;

    struct Served {
        tokio: tokio::runtime::Runtime,
        admin: Admin,
        metrics: Metrics,
        status: StatusBoard,
        clock: Clock,
    }

    impl Served {
        fn start() -> Self {
            let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let (metrics, board, runtime) = (Metrics::new(), StatusBoard::default(), Runtime::system());
            let clock = runtime.clock();
            let admin = tokio.block_on(Admin::start("127.0.0.1:0", metrics.clone(), board.clone(), runtime)).unwrap();
            Self { tokio, admin, metrics, status: board, clock }
        }

        fn publish(&self, pipeline: &str, state: PipelineState, stage: Option<&str>, reason: Option<&str>) {
            self.status.publish(PipelineStatus {
                pipeline: pipeline.into(),
                state,
                since: 1000.0,
                stage: stage.map(str::to_owned),
                reason: reason.map(str::to_owned),
                last_commit: Some(999.0),
                epoch: 4,
                restarts: 1,
            });
        }

        /// The status code, the head and the body of an answer.
        fn get(&self, path: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.admin.address()).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
        }

        fn json(&self, path: &str) -> (u16, Value) {
            let (code, _, body) = self.get(path);
            (code, serde_json::from_str(&body).unwrap())
        }
    }

    #[test]
    fn ready_follows_the_phase_of_the_process_and_lists_the_pipelines() {
        let served = Served::start();
        assert_eq!(served.json("/ready").0, 503);
        served.publish("orders", PipelineState::Failed, None, None);
        served.status.set_phase(Phase::Ready);
        let (code, body) = served.json("/ready");
        assert_eq!((code, &body["ready"], &body["phase"]), (200, &json!(true), &json!("ready")));
        assert_eq!(body["pipelines"][0]["pipeline"], "orders");
        assert_eq!(body["pipelines"][0]["state"], "failed");
        served.status.set_phase(Phase::Stopping);
        assert_eq!(served.json("/ready").0, 503);
    }

    #[test]
    fn a_pipeline_without_progress_tells_since_when_where_and_why() {
        let served = Served::start();
        for (state, expected) in [
            (PipelineState::Starting, 503),
            (PipelineState::Running, 200),
            (PipelineState::Stuck, 503),
            (PipelineState::BackingOff, 503),
            (PipelineState::Failing, 503),
            (PipelineState::Failed, 503),
            (PipelineState::Finished, 200),
            (PipelineState::Stopped, 200),
        ] {
            served.publish("orders", state, None, None);
            assert_eq!(served.json("/ready/orders").0, expected, "{state:?}");
        }
        served.publish("orders", PipelineState::Stuck, Some("totals"), Some("no answer from 127.0.0.1:9092"));
        let (_, body) = served.json("/ready/orders");
        assert_eq!(body["ready"], false);
        assert_eq!(body["state"], "stuck");
        assert_eq!(body["since"], 1000.0);
        assert_eq!(body["stage"], "totals");
        assert_eq!(body["reason"], "no answer from 127.0.0.1:9092");
    }

    #[test]
    fn an_unknown_pipeline_is_not_found() {
        let served = Served::start();
        served.publish("orders", PipelineState::Running, None, None);
        let (code, body) = served.json("/ready/oders");
        assert_eq!((code, &body["pipelines"]), (404, &json!(["orders"])));
        assert_eq!(served.get("/nothing").0, 404);
    }

    #[test]
    fn live_fails_only_when_a_heart_stops() {
        let served = Served::start();
        served.publish("orders", PipelineState::Failed, None, None);
        served.status.beat("scheduler", served.clock.now());
        assert_eq!(served.json("/live").0, 200);
        let long_ago = served.clock.now().checked_sub(Duration::from_secs(61)).unwrap();
        served.status.beat("scheduler", long_ago);
        let (code, body) = served.json("/live");
        assert_eq!((code, &body["task"]), (503, &json!("scheduler")));
    }

    #[test]
    fn metrics_are_served_in_the_text_format() {
        let served = Served::start();
        served.metrics.stage("orders", "clean", "transform", "map").received_records.inc_by(3);
        let (code, head, body) = served.get("/metrics");
        assert_eq!(code, 200);
        assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
        let line = "weir_component_received_records_total{component=\"clean\",kind=\"transform\",pipeline=\"orders\",\
                    type=\"map\"} 3\n";
        assert!(body.contains(line), "{body}");
        assert!(served.get("/").2.contains("/ready/PIPELINE"));
    }

    #[test]
    fn an_address_in_use_is_a_clear_error() {
        let served = Served::start();
        let listen = served.admin.address().to_string();
        let second = Admin::start(&listen, Metrics::new(), StatusBoard::default(), Runtime::system());
        let error = served.tokio.block_on(second).unwrap_err().to_string();
        assert!(error.contains(&listen) && error.contains("WEIR_ADMIN__LISTEN"), "{error}");
    }

    #[test]
    fn a_connection_that_stays_open_does_not_hold_up_the_end() {
        let served = Served::start();
        let stream = TcpStream::connect(served.admin.address()).unwrap();
        let begun = served.clock.now();
        served.tokio.block_on(served.admin.stop());
        assert!(served.clock.now() - begun < CLOSE_WITHIN + Duration::from_secs(5));
        drop(stream);
    }
}
