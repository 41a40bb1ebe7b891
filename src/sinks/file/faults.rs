//! Crashes at every step of a commit: after each of them, all records are in the files, and each is there once.
//!
//! A pipeline with two sinks, one of them rotated, reads numbered records, and commits now and then. Every point at which
//! a process can die between two effects is a step. The pipeline is run as often as there are steps, and dies at another
//! one each time; then with a second death while the first is being made good. A process that dies is dropped as it
//! stands, and a new one begins from what is on the disk, in the store and at the judge.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use futures::future::BoxFuture;

    use crate::component::{BoxSink, BuildContext};
    use crate::delivery::{
        Changes, CommitPositions, Committed, Decision, FenceError, LocalTransaction, Mark, Participant, Participants,
        Positions, SourceOffsets, Transaction, checkpoint,
    };
    use crate::record::{Batch, BatchBuilder, Draft, Partition, Position, Timestamp};
    use crate::runtime::Runtime;
    use crate::state::{Entries, MemoryStore, Store, StoreError};
    use crate::testing::harness;

    const RECORDS: i64 = 40;
    /// Records of an epoch.
    const EPOCH: i64 = 8;

    /// What outlives processes: the store, the judge, and when they die.
    #[derive(Debug, Default)]
    struct World {
        store: MemoryStore,
        steps: AtomicUsize,
        /// The steps at which a process dies.
        deaths: Mutex<Vec<usize>>,
        dead: AtomicBool,
        /// The offset that the judge has, and the mark of its commit.
        judged: Mutex<(i64, Option<Mark>)>,
        /// The judge refuses commits until this step.
        refuses_until: AtomicUsize,
        refused: AtomicUsize,
    }

    type Step = Result<(), String>;

    impl World {
        /// Something can go wrong here.
        fn step(&self) -> Step {
            let step = self.steps.fetch_add(1, SeqCst);
            if self.deaths.lock().unwrap().contains(&step) {
                self.dead.store(true, SeqCst);
            }
            if self.dead.load(SeqCst) { Err("the process is dead".to_owned()) } else { Ok(()) }
        }
    }

    /// The world's store, as a process sees it.
    #[derive(Debug)]
    struct MortalStore(Arc<World>);

    impl Store for MortalStore {
        fn load(&self, scope: &str) -> BoxFuture<'_, Result<Entries, StoreError>> {
            self.0.store.load(scope)
        }

        fn commit(&self, scope: &str, changes: Changes) -> BoxFuture<'_, Result<(), StoreError>> {
            let scope = scope.to_owned();
            Box::pin(async move {
                self.0.step().map_err(StoreError)?;
                self.0.store.commit(&scope, changes).await?;
                // Done, and nobody is told.
                self.0.step().map_err(StoreError)
            })
        }
    }

    /// A source that keeps its positions itself.
    #[derive(Debug)]
    struct Judge(Arc<World>);

    impl CommitPositions for Judge {
        fn commit(&self, _: u64, _: Positions) -> BoxFuture<'_, Result<(), String>> {
            unreachable!("the pipeline is exactly once")
        }

        fn decide(&self, mark: Mark, positions: Positions) -> BoxFuture<'_, Decision> {
            Box::pin(async move {
                if let Err(why) = self.0.step() {
                    return Decision::Unknown(why);
                }
                if self.0.steps.load(SeqCst) < self.0.refuses_until.load(SeqCst) {
                    self.0.refused.fetch_add(1, SeqCst);
                    return Decision::No("the generation is over".to_owned());
                }
                let position = positions.values().next().expect("an epoch has positions").0;
                *self.0.judged.lock().unwrap() = (position, Some(mark));
                self.0.step().map_or_else(Decision::Unknown, |()| Decision::Yes)
            })
        }

        fn is_decided(&self, mark: Mark, _: Positions) -> BoxFuture<'_, Result<bool, FenceError>> {
            Box::pin(async move { Ok(self.0.judged.lock().unwrap().1.as_ref() == Some(&mark)) })
        }
    }

    /// A participant of a process that may die around its renames.
    #[derive(Debug)]
    struct Mortal(Arc<dyn Participant>, Arc<World>);

    impl Participant for Mortal {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn changes(&self) -> Changes {
            self.0.changes()
        }

        fn committed(&self) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async {
                self.1.step()?;
                self.0.committed().await?;
                self.1.step()
            })
        }

        fn recover(&self, entries: BTreeMap<String, Vec<u8>>) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async {
                self.1.step()?;
                self.0.recover(entries).await?;
                self.1.step()
            })
        }

        fn finish(&self) -> BoxFuture<'_, Result<(), String>> {
            self.0.finish()
        }
    }

    /// The pipeline of a test.
    struct Scenario<'a> {
        folder: &'a Path,
        sinks: [String; 2],
        judged: bool,
    }

    fn partition() -> Partition {
        Partition { source: "in".into(), topic: "in".into(), number: 0 }
    }

    fn records(from: i64, to: i64) -> Batch {
        let mut batch = BatchBuilder::new(Arc::new(partition()), 0, 0);
        for n in from..to {
            let body = format!("record {n:03}");
            // Times go back and forth, over three hours.
            let timestamp = Timestamp(n % 3 * 3_600_000);
            batch.push_copy(Draft { body: body.as_bytes(), timestamp, offset: n, ..Draft::default() });
        }
        batch.finish()
    }

    impl Scenario<'_> {
        /// One process: from what is committed to the end of the input, or to its death.
        async fn live(&self, world: &Arc<World>) -> Step {
            let runtime = Runtime::simulated(1);
            let store: Arc<dyn Store> = Arc::new(MortalStore(Arc::clone(world)));
            let process =
                BuildContext { store: Arc::clone(&store), runtime: runtime.clone(), ..harness::build_context() };
            let mut sinks: Vec<BoxSink> = Vec::new();
            for (name, yaml) in ["first", "second"].into_iter().zip(&self.sinks) {
                let context = BuildContext { component: name.into(), ..process.clone() };
                sinks.push((harness::sink(yaml).compiled().build)(&context).expect("it can be built"));
            }
            let participants = Arc::new(Participants::default());
            for participant in process.clients.shared(Participants::default).all() {
                participants.join(Arc::new(Mortal(participant, Arc::clone(world))));
            }
            let transaction = LocalTransaction::new("test", store, Arc::clone(&participants), runtime);
            let judge = Arc::new(Judge(Arc::clone(world)));
            let transaction = if self.judged {
                transaction.judged_by("in".into(), judge as Arc<dyn CommitPositions>)
            } else {
                transaction
            };

            transaction.fence().await.map_err(|error| error.to_string())?;
            for sink in &mut sinks {
                sink.open().await.map_err(|error| error.to_string())?;
            }
            let mut at = self.committed(world).await;
            self.check_finals(at);
            while at < RECORDS {
                let end = (at + EPOCH).min(RECORDS);
                while at < end {
                    let batch = Arc::new(records(at, (at + 3).min(end)));
                    at = (at + 3).min(end);
                    for sink in &mut sinks {
                        world.step()?;
                        let answer = sink.write(Arc::clone(&batch)).await.map_err(|error| error.to_string())?;
                        answer.await.map_err(|error| error.to_string())?;
                    }
                }
                for sink in &mut sinks {
                    world.step()?;
                    sink.flush().await.map_err(|error| error.to_string())?;
                }
                world.step()?;
                let positions = Positions::from([(partition(), Position(end))]);
                match transaction.commit(1, vec![SourceOffsets { source: "in".into(), positions }]).await {
                    Committed::Yes => {}
                    Committed::Aborted(why) | Committed::Fenced(why) => return Err(why),
                }
                world.step()?;
            }
            participants.finish().await?;
            world.step()
        }

        async fn committed(&self, world: &World) -> i64 {
            if self.judged {
                return world.judged.lock().unwrap().0;
            }
            let entries = world.store.load(&checkpoint::scope("test")).await.expect("it works");
            let positions = checkpoint::decode("in", &entries).expect("it is whole");
            positions.get(&partition()).map_or(0, |position| position.0)
        }

        /// A final name holds committed records only, whenever one looks.
        fn check_finals(&self, committed: i64) {
            let rotated = numbers(self.folder, |name| name.starts_with("second") && !name.contains(".open"));
            let mut last: Vec<_> = rotated.iter().filter(|n| **n >= committed).collect();
            last.sort();
            assert!(last.is_empty(), "{last:?} are in files with final names, and {committed} is committed");
        }
    }

    /// The numbers of the records in the files of a folder whose names are wanted.
    fn numbers(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<i64> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("it can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if !wanted(&name) {
                continue;
            }
            let bytes = fs::read(&path).expect("it can be read");
            let mut text = String::new();
            if name.contains(".gz") {
                flate2::read::MultiGzDecoder::new(&*bytes).read_to_string(&mut text).expect("it is whole");
            } else {
                text = String::from_utf8(bytes).expect("it is text");
            }
            let number = |line: &str| line.strip_prefix("record ").and_then(|n| n.parse::<i64>().ok());
            numbers.extend(text.lines().map(|line| number(line).unwrap_or_else(|| panic!("a torn line: {line}"))));
        }
        numbers
    }

    /// What it took to come to the end.
    struct Survived {
        steps: usize,
        refused: usize,
    }

    /// Runs processes until one comes to the end, and looks at the files.
    async fn survive(sinks: [&str; 2], judged: bool, deaths: &[usize], refuses_until: usize) -> Survived {
        // Nothing must survive the machine, and a disk would take a minute for its syncs.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room");
        let root = folder.path().display().to_string();
        let sinks = sinks.map(|yaml| format!("file: {{ codec: raw, path: \"{root}/{yaml} }}"));
        let scenario = Scenario { folder: folder.path(), sinks, judged };
        let world = Arc::new(World::default());
        *world.deaths.lock().unwrap() = deaths.to_vec();
        world.refuses_until.store(refuses_until, SeqCst);
        let mut lives = 0;
        while let Err(why) = scenario.live(&world).await {
            scenario.check_finals(scenario.committed(&world).await);
            lives += 1;
            assert!(lives < 50, "it gets nowhere: {why}");
            world.dead.store(false, SeqCst);
        }
        for sink in ["first", "second"] {
            let mut found = numbers(folder.path(), |name| name.starts_with(sink));
            found.sort_unstable();
            let expected: Vec<_> = (0..RECORDS).collect();
            assert_eq!(found, expected, "{sink}, with deaths at {deaths:?}");
        }
        let open = fs::read_dir(folder.path()).expect("the folder is there");
        let open =
            open.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().to_string_lossy().ends_with(".open")));
        assert_eq!(open.count(), 0, "all files are finished, with deaths at {deaths:?}");
        Survived { steps: world.steps.load(SeqCst), refused: world.refused.load(SeqCst) }
    }

    const PLAIN_AND_ROTATED: [&str; 2] = ["first.txt\"", "second.txt\", rotate: { size: 60B }"];
    const TIMES_AND_COMPRESSED: [&str; 2] = ["first-%H.txt\"", "second.gz\", rotate: { size: 60B }, compression: gzip"];

    async fn at_every_step(sinks: [&str; 2], judged: bool) {
        let steps = survive(sinks, judged, &[], 0).await.steps;
        assert!(steps > 60, "{steps} steps");
        for first in 0..steps {
            survive(sinks, judged, &[first], 0).await;
            // The second death comes while the first is made good.
            for second in [1, 2, 5] {
                survive(sinks, judged, &[first, first + second], 0).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whenever_a_process_dies_each_record_is_in_the_files_once() {
        at_every_step(PLAIN_AND_ROTATED, false).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whenever_a_process_dies_each_record_is_in_files_of_times_and_compressed_ones_once() {
        at_every_step(TIMES_AND_COMPRESSED, false).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whenever_a_process_dies_the_judge_decides_and_each_record_is_in_the_files_once() {
        at_every_step(PLAIN_AND_ROTATED, true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_judge_refuses_is_cut_off_and_written_again() {
        let mut refused = 0;
        for refuses_until in (0..200).step_by(7) {
            refused += survive(PLAIN_AND_ROTATED, true, &[], refuses_until).await.refused;
            refused += survive(TIMES_AND_COMPRESSED, true, &[refuses_until / 2], refuses_until).await.refused;
        }
        assert!(refused > 50, "{refused}");
    }
}
