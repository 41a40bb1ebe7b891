//! The records that leave a stage: as they came while none was changed, copied into new bytes from the first change on.

use crate::record::{Batch, BatchBuilder, Record};

/// Where a batch is cut that programs have made much larger than it came. A batch must stay far below 4 GiB.
const CUT_BYTES: usize = 256 << 20;

/// Collects the records of one batch that go on, in order.
#[derive(Debug)]
pub struct Rewrite {
    input: Batch,
    /// What is kept while nothing was changed.
    unchanged: Vec<Record>,
    builder: Option<BatchBuilder>,
    full: Vec<Batch>,
}

impl Rewrite {
    /// Of a batch that came in.
    #[must_use]
    pub fn of(input: &Batch) -> Self {
        Self { input: input.clone(), unchanged: Vec::with_capacity(input.len()), builder: None, full: Vec::new() }
    }

    /// Lets a record go on as it came.
    pub fn keep(&mut self, record: &Record) {
        match &mut self.builder {
            None => self.unchanged.push(*record),
            Some(builder) => builder.push_from(&self.input, record),
        }
    }

    /// Where a changed record is written.
    pub(super) fn builder(&mut self) -> &mut BatchBuilder {
        if self.builder.as_ref().is_some_and(|builder| builder.bytes().len() > CUT_BYTES) {
            self.full.extend(self.builder.take().map(BatchBuilder::finish));
        }
        let Self { input, unchanged, builder, .. } = self;
        builder.get_or_insert_with(|| {
            // Programs mostly change a body by a little.
            let bytes = input.bytes().len() + input.bytes().len() / 4;
            let fields = input.records().iter().map(|record| record.fields.map_or(0, |range| range.len as usize + 2));
            let mut builder = BatchBuilder::new(input.origin().clone(), bytes, input.len());
            builder.fields_mut().reserve(fields.sum());
            for record in unchanged.drain(..) {
                builder.push_from(input, &record);
            }
            builder
        })
    }

    /// What goes on.
    #[must_use]
    pub fn finish(mut self) -> Vec<Batch> {
        let last = match self.builder {
            None => self.input.with_records(self.unchanged),
            Some(builder) => builder.finish(),
        };
        self.full.push(last);
        self.full
    }
}
