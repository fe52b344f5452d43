//! What has been learnt, in a file: so that an agent that starts again need not learn it again.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{baseline::Baseline, workload::Workload};

/// Of the form of the file. One of another version is not read.
const VERSION: u32 = 1;
/// Name of the file.
const NAME: &str = "syscall-baselines.json";
/// A file that is longer is not read, and none is written: what 1,000 workloads take at the most is
/// some 40 MiB.
const LARGEST: u64 = 64 << 20;

/// Everything that was learnt. The latest active workload comes first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    version: u32,
    /// Numbers of calls are an architecture's.
    architecture: String,
    pub(super) workloads: Vec<(Workload, Baseline)>,
}

impl Saved {
    pub(super) fn new(workloads: Vec<(Workload, Baseline)>) -> Self {
        Self { version: VERSION, architecture: std::env::consts::ARCH.into(), workloads }
    }

    /// How many workloads it knows.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.workloads.len()
    }
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    /// The kernel refused it.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// It is not what was written by this version on this architecture.
    #[error("{}: {problem}; expected what orb8 {} writes", path.display(), env!("CARGO_PKG_VERSION"))]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The file in a directory.
#[derive(Clone, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The one in `dir`.
    #[must_use]
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(NAME) }
    }

    /// Where it is.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub(crate) fn read(&self) -> Result<Option<Saved>, SavedError> {
        let mut text = Vec::new();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(error)),
        };
        file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| self.io(error))?;
        self.parse(&text).map(Some)
    }

    fn parse(&self, text: &[u8]) -> Result<Saved, SavedError> {
        let wrong = |problem: String| SavedError::Content { path: self.path.clone(), problem };
        if text.len() as u64 > LARGEST {
            return Err(wrong(format!("it has more than {LARGEST} bytes")));
        }
        let saved: Saved = serde_json::from_slice(text).map_err(|why| wrong(why.to_string()))?;
        if saved.version != VERSION {
            return Err(wrong(format!("it has version {}", saved.version)));
        }
        if saved.architecture != std::env::consts::ARCH {
            return Err(wrong(format!("it is of architecture {:?}", saved.architecture)));
        }
        Ok(saved)
    }

    /// Replaces it at once: whoever reads it finds the old one or the new one, whatever happens.
    ///
    /// # Errors
    /// When it cannot be written. The old one is then as it was.
    pub(crate) fn write(&self, saved: &Saved) -> Result<(), SavedError> {
        let text = serde_json::to_vec(saved).map_err(|why| self.io(why.into()))?;
        if text.len() as u64 > LARGEST {
            let problem = format!("{} bytes to write, at most {LARGEST}", text.len());
            return Err(SavedError::Content { path: self.path.clone(), problem });
        }
        let new = self.path.with_extension("json.new");
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let replace = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            // The name is on disk when the directory is.
            File::open(dir)?.sync_all()
        };
        replace().map_err(|error| self.io(error))
    }

    fn io(&self, error: io::Error) -> SavedError {
        SavedError::Io { path: self.path.clone(), error }
    }
}
