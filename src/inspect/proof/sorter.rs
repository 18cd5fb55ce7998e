//! External sort. Entries are sorted in memory up to a bound; beyond it, sorted runs are written to
//! temporary files and merged.
//!
//! A file is removed from its folder as soon as it is open, so that it disappears with the process.
//! Memory: one buffer of [`Sorter::MEMORY`] bytes while entries are added, and a read buffer for
//! each of at most [`LEVEL_RUNS`] runs per level while they are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use super::entry::{Entry, Fields};

/// Number of runs of one level. One more is merged with them into a run of the next level, so the
/// number of open files grows with the logarithm of the number of entries.
const LEVEL_RUNS: usize = 32;

/// Read buffer of a run.
const READ_BYTES: usize = 32 << 10;

/// Collects entries and returns them sorted.
pub(crate) struct Sorter<T> {
    folder: PathBuf,
    capacity: usize,
    buffer: Vec<T>,
    levels: Vec<Vec<Run<T>>>,
    entries: u64,
}

/// A sorted file of entries.
struct Run<T> {
    file: File,
    entry: PhantomData<T>,
}

/// Entries in ascending order.
pub(crate) struct Sorted<T> {
    sources: Vec<Source<T>>,
    /// The next entry of each source.
    heads: BinaryHeap<Reverse<(T, usize)>>,
    failed: Option<io::Error>,
}

enum Source<T> {
    Memory(std::vec::IntoIter<T>),
    File(BufReader<File>),
}

impl<T: Entry> Sorter<T> {
    /// Size of the buffer in bytes.
    pub(crate) const MEMORY: usize = 2 << 20;

    /// Creates an empty sorter. Files are created in `folder` when the buffer is full.
    pub(crate) fn new(folder: &Path) -> Self {
        Self::with_capacity(folder, Self::MEMORY / size_of::<T>())
    }

    fn with_capacity(folder: &Path, capacity: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            capacity,
            buffer: Vec::new(),
            levels: Vec::new(),
            entries: 0,
        }
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> u64 {
        self.entries
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// Returns an error if a temporary file cannot be created or written.
    pub(crate) fn push(&mut self, entry: T) -> io::Result<()> {
        if self.buffer.len() == self.capacity {
            self.spill()?;
        }
        if self.buffer.len() == self.buffer.capacity() {
            // Doubling would exceed the bound.
            let more = self
                .buffer
                .len()
                .max(1_024)
                .min(self.capacity - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        self.buffer.push(entry);
        self.entries += 1;
        Ok(())
    }

    /// Returns the entries in ascending order.
    ///
    /// # Errors
    ///
    /// Returns an error if a temporary file cannot be read.
    pub(crate) fn sorted(mut self) -> io::Result<Sorted<T>> {
        self.buffer.sort_unstable();
        let memory = Source::Memory(std::mem::take(&mut self.buffer).into_iter());
        let files = self.levels.drain(..).flatten().map(Run::open);
        let sources = std::iter::once(Ok(memory)).chain(files);
        Sorted::of(sources.collect::<io::Result<_>>()?)
    }

    /// Writes the buffer to a file, and merges the runs of a full level.
    fn spill(&mut self) -> io::Result<()> {
        self.buffer.sort_unstable();
        let mut run = Run::write(&self.folder, self.buffer.iter().copied().map(Ok))?;
        self.buffer.clear();
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            let runs = &mut self.levels[level];
            runs.push(run);
            if runs.len() <= LEVEL_RUNS {
                break;
            }
            let sources = runs.drain(..).map(Run::open).collect::<io::Result<_>>()?;
            run = Run::write(&self.folder, Sorted::of(sources)?)?;
        }
        Ok(())
    }
}

impl<T: Entry> Run<T> {
    fn write(folder: &Path, entries: impl Iterator<Item = io::Result<T>>) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(READ_BYTES, temporary_file(folder)?);
        let mut bytes = Vec::with_capacity(T::BYTES);
        for entry in entries {
            bytes.clear();
            entry?.encode(&mut bytes);
            out.write_all(&bytes)?;
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Self {
            file,
            entry: PhantomData,
        })
    }

    fn open(mut self) -> io::Result<Source<T>> {
        self.file.rewind()?;
        Ok(Source::File(BufReader::with_capacity(
            READ_BYTES, self.file,
        )))
    }
}

impl<T: Entry> Source<T> {
    fn next(&mut self) -> io::Result<Option<T>> {
        match self {
            Self::Memory(entries) => Ok(entries.next()),
            Self::File(file) => {
                let mut bytes = [0; 64];
                let bytes = &mut bytes[..T::BYTES];
                match file.read_exact(bytes) {
                    Ok(()) => Ok(Some(T::decode(&mut Fields(bytes)))),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

impl<T: Entry> Sorted<T> {
    fn of(mut sources: Vec<Source<T>>) -> io::Result<Self> {
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for (at, source) in sources.iter_mut().enumerate() {
            heads.extend(source.next()?.map(|entry| Reverse((entry, at))));
        }
        Ok(Self {
            sources,
            heads,
            failed: None,
        })
    }
}

impl<T: Entry> Iterator for Sorted<T> {
    type Item = io::Result<T>;

    fn next(&mut self) -> Option<io::Result<T>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let Reverse((entry, at)) = self.heads.pop()?;
        match self.sources[at].next() {
            Ok(next) => self.heads.extend(next.map(|next| Reverse((next, at)))),
            Err(error) => {
                self.heads.clear();
                self.failed = Some(error);
            }
        }
        Some(Ok(entry))
    }
}

/// Creates a file without a name.
fn temporary_file(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".tidings-verify-{}", uuid::Uuid::now_v7().simple()));
    let with_path = |error: io::Error| {
        let text = format!("cannot use {}: {error}", folder.display());
        io::Error::new(error.kind(), text)
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = options.open(&path).map_err(with_path)?;
    fs::remove_file(&path).map_err(with_path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inspect::proof::entry::{Origin, TopicRecord};

    fn record(number: u32) -> TopicRecord {
        TopicRecord {
            id: u128::from(number % 1_000).to_be_bytes(),
            place: number % 3,
            offset: i64::from(number),
            time: 0,
            origin: Origin::Relay,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn entries_come_out_sorted_whatever_was_written_to_files(
            numbers in proptest::collection::vec(any::<u32>(), 0..400),
            capacity in 1usize..50,
        ) {
            let mut expected: Vec<_> = numbers.iter().copied().map(record).collect();
            let mut sorter = Sorter::with_capacity(&std::env::temp_dir(), capacity);
            for entry in &expected {
                sorter.push(*entry).expect("a temporary file");
            }
            expected.sort_unstable();
            prop_assert_eq!(sorter.len(), expected.len() as u64);
            let sorted: Result<Vec<_>, _> = sorter.sorted().expect("readable").collect();
            prop_assert_eq!(sorted.expect("readable"), expected);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        let mut sorter = Sorter::with_capacity(Path::new("/does/not/exist"), 1);
        sorter.push(record(1)).expect("kept in memory");
        let error = sorter.push(record(2)).expect_err("no folder");
        assert!(error.to_string().contains("/does/not/exist"), "{error}");
    }
}
