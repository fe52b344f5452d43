//! A value made of files, made anew when they change, and kept when the new ones are no good.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::error::{FileError, Part};

/// Nothing that belongs into these files is larger; what is, is refused instead of read.
const LARGEST_FILE: u64 = 4 << 20;

/// How it stands with what was loaded from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// When the value in use was loaded.
    pub loaded: SystemTime,
    /// How often it was replaced since the start.
    pub reloads: u64,
    /// Why what lies on disk now is not what is in use; `None`: it is.
    pub problem: Option<String>,
}

/// A file that a value is made of.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) part: Part,
    pub(crate) path: PathBuf,
}

impl Source {
    pub(crate) fn new(part: Part, path: impl Into<PathBuf>) -> Self {
        Self { part, path: path.into() }
    }
}

type Build<T> = dyn Fn(&[Vec<u8>]) -> Result<T, FileError> + Send + Sync;

/// The value of type `T`, and how to make it of the contents of its files, in their order.
pub(crate) struct Reloading<T> {
    sources: Vec<Source>,
    build: Box<Build<T>>,
    hasher: RandomState,
    /// Whether a look is under way: on a file system that hangs, looks are not to pile up.
    looking: AtomicBool,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    value: Arc<T>,
    /// Of the contents that were last looked at, good or bad. A hash: keys are not kept in memory
    /// a second time, and its key is random, so nobody can aim at a collision.
    seen: Option<u64>,
    checked: Instant,
    told: bool,
    state: FileState,
}

impl<T> Reloading<T> {
    /// Reads the files and makes the first value.
    ///
    /// # Errors
    /// When they cannot be read or the value not be made: with no value there is none to keep.
    pub(crate) fn load(
        sources: Vec<Source>,
        build: impl Fn(&[Vec<u8>]) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let hasher = RandomState::new();
        let contents = read_all(&sources)?;
        let value = build(&contents)?;
        warn_of_permissions(&sources);
        let inner = Inner {
            value: Arc::new(value),
            seen: Some(hasher.hash_one(&contents)),
            checked: Instant::now(),
            told: false,
            state: FileState { loaded: SystemTime::now(), reloads: 0, problem: None },
        };
        Ok(Self {
            sources,
            build: Box::new(build),
            hasher,
            looking: AtomicBool::new(false),
            inner: Mutex::new(inner),
        })
    }

    /// The value in use.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.lock().value)
    }

    pub(crate) fn state(&self) -> FileState {
        self.lock().state.clone()
    }

    /// Whether the last look at the files was `age` ago or more.
    pub(crate) fn due(&self, age: Duration) -> bool {
        self.lock().checked.elapsed() >= age
    }

    /// Looks at the files and takes what is new and good. Contents are compared, not times: a Secret
    /// is swapped by a symbolic link, and times can be set. The files are read without the lock.
    ///
    /// A problem is logged when it is seen for the second time with the same contents: between the
    /// writing of a certificate and of its key the two are not a pair, and that is no news.
    pub(crate) fn check(&self) {
        self.lock().checked = Instant::now();
        let read = read_all(&self.sources);
        let seen = read.as_ref().ok().map(|contents| self.hasher.hash_one(contents));
        {
            let mut inner = self.lock();
            if seen.is_some() && seen == inner.seen {
                self.tell(&mut inner);
                return;
            }
        }
        let made = read.and_then(|contents| (self.build)(&contents));
        let mut inner = self.lock();
        match made {
            Ok(value) => {
                inner.value = Arc::new(value);
                inner.state.loaded = SystemTime::now();
                inner.state.reloads += 1;
                inner.state.problem = None;
                inner.told = false;
                tracing::info!("{}: changed on disk, taken", self.names());
                warn_of_permissions(&self.sources);
            }
            Err(error) => {
                let problem = Some(error.to_string());
                if inner.state.problem == problem {
                    self.tell(&mut inner);
                } else {
                    inner.told = false;
                    inner.state.problem = problem;
                }
            }
        }
        inner.seen = seen;
    }

    fn tell(&self, inner: &mut Inner<T>) {
        if let Some(problem) = inner.state.problem.as_ref().filter(|_| !inner.told) {
            tracing::error!("{problem}; what was loaded before stays in use");
            inner.told = true;
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> =
            self.sources.iter().map(|source| source.path.display().to_string()).collect();
        names.join(", ")
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// [`Reloading::check`] off the runtime's threads, if the last one is `age` ago or more and over.
    pub(crate) async fn refresh(self: &Arc<Self>, age: Duration) {
        if !self.due(age) || self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let files = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            files.check();
            files.looking.store(false, Ordering::Release);
        });
        // One that was cut off by the runtime's end changed nothing.
        let _ended = look.await;
    }
}

fn read_all(sources: &[Source]) -> Result<Vec<Vec<u8>>, FileError> {
    let unreadable = |source: &Source, error| FileError::Unreadable {
        part: source.part,
        path: source.path.clone(),
        source: error,
    };
    sources.iter().map(|s| read(&s.path).map_err(|error| unreadable(s, error))).collect()
}

/// Not from pipes and devices, which would hang or never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(wrong("expected a file".into()));
    }
    let mut contents = Vec::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > LARGEST_FILE {
        return Err(wrong(format!("larger than {} MiB", LARGEST_FILE >> 20)));
    }
    Ok(contents)
}

fn warn_of_permissions(sources: &[Source]) {
    for source in sources.iter().filter(|s| matches!(s.part, Part::Key | Part::Token)) {
        if let Some(mode) = open_to_others(&source.path) {
            tracing::warn!(
                "{} {}: can be read by others than its owner (mode {mode:04o}); expected 0400 or \
                 0600",
                source.part,
                source.path.display()
            );
        }
    }
}

/// The mode of a file that its group or everybody may read.
fn open_to_others(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & 0o044 != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<Reloading<u32>, FileError> {
        Reloading::load(vec![Source::new(Part::Key, path)], |contents| {
            let text = String::from_utf8_lossy(&contents[0]).into_owned();
            let reason = format!("{text:?}");
            text.parse().map_err(|_| FileError::Options(reason))
        })
    }

    #[test]
    fn new_contents_are_taken_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        fs::write(&path, "1").unwrap();
        let value = number(&path).unwrap();
        fs::write(&path, "2").unwrap();
        value.check();
        assert_eq!((*value.current(), value.state().reloads), (2, 1));
        fs::write(&path, "two").unwrap();
        for _ in 0..3 {
            value.check();
            assert_eq!(*value.current(), 2);
            assert!(value.state().problem.unwrap().contains("two"));
        }
        fs::remove_file(&path).unwrap();
        value.check();
        let problem = value.state().problem.unwrap();
        assert!(problem.contains(&path.display().to_string()), "{problem}");
        assert_eq!(*value.current(), 2);
        fs::write(&path, "2").unwrap();
        value.check();
        assert_eq!(value.state().problem, None);
        assert_eq!(*value.current(), 2);
    }

    #[test]
    fn a_swap_of_the_directory_by_a_symbolic_link_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [("a", "1"), ("b", "2")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("n"), text).unwrap();
        }
        std::os::unix::fs::symlink("a", at("data")).unwrap();
        let value = number(&at("data").join("n")).unwrap();
        std::os::unix::fs::symlink("b", at("data.new")).unwrap();
        fs::rename(at("data.new"), at("data")).unwrap();
        value.check();
        assert_eq!(*value.current(), 2);
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let said = number(dir.path()).err().unwrap().to_string();
        assert!(said.contains("expected a file"), "{said}");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(number(&pipe).is_err());
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST_FILE + 1).unwrap();
        let said = number(&large).err().unwrap().to_string();
        assert!(said.contains("larger than 4 MiB"), "{said}");
    }

    #[test]
    fn a_file_that_others_may_read_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "1").unwrap();
        for (mode, open) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_to_others(&path).is_some(), open, "{mode:o}");
        }
    }
}
