//! A file under way: `FILE.partial` beside the `FILE` that it will be.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{Position, Reader, Unreadable, Writer};

/// The file under way, held by this process alone.
#[derive(Debug)]
pub struct Partial {
    pub path: PathBuf,
    target: PathBuf,
    file: File,
}

impl Partial {
    /// Takes the file under way for `target`, new or left behind by an earlier run.
    ///
    /// # Errors
    /// When `target` is there already, another process is at work on it, or it cannot be written.
    pub fn take(target: &Path) -> anyhow::Result<Self> {
        if target.try_exists().with_context(|| format!("{} cannot be looked for", target.display()))? {
            bail!("{} is there already, and whole; remove it, or name another file", target.display());
        }
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        // Not for everybody's eyes: it holds what customers wrote.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, target: target.to_owned(), file }),
            Err(TryLockError::WouldBlock) => bail!("another deskfeed is writing {}; wait for it", path.display()),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("{} cannot be locked", path.display()))
            }
        }
    }

    /// What an earlier run left: a reader, unless it did not get as far as a whole header.
    ///
    /// # Errors
    /// When the file cannot be read, or is not one of ours.
    pub fn left_behind(&self) -> anyhow::Result<Option<Reader>> {
        if fs::metadata(&self.path)?.len() == 0 {
            return Ok(None);
        }
        match Reader::open(&self.path) {
            Ok(reader) => Ok(Some(reader)),
            // A header is written in one go; only a power cut leaves a part of it.
            Err(Unreadable::NotOurs(_)) if self.begins_like_a_header()? => Ok(None),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "{} is in the way and cannot be continued; remove it, or name another file",
                    self.path.display()
                )
            }),
        }
    }

    fn begins_like_a_header(&self) -> io::Result<bool> {
        let text = fs::read(&self.path)?;
        let start = br#"{"kind":"header","#;
        Ok(!text.contains(&b'\n') && (start.starts_with(&text) || text.starts_with(start)))
    }

    /// Writes from the start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn from_start(&mut self) -> io::Result<&File> {
        self.cut(0)
    }

    /// Writes on from `at`, and forgets what stood behind it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn continue_at(&mut self, at: Position) -> io::Result<Writer<&File>> {
        let bytes = at.bytes;
        Ok(Writer::continue_at(self.cut(bytes)?, at))
    }

    fn cut(&mut self, bytes: u64) -> io::Result<&File> {
        self.file.set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes))?;
        Ok(&self.file)
    }

    /// Gives the file its name, durably: it is whole.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn finish(self) -> anyhow::Result<()> {
        publish(&self.path, &self.target)
    }

    /// Gives the name to another file, durably, and removes this one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn finish_with(self, whole: &Path) -> anyhow::Result<()> {
        publish(whole, &self.target)?;
        fs::remove_file(&self.path).with_context(|| format!("{} cannot be removed", self.path.display()))
    }
}

fn publish(whole: &Path, target: &Path) -> anyhow::Result<()> {
    File::open(whole)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("{} cannot be flushed to the disk", whole.display()))?;
    fs::rename(whole, target)
        .with_context(|| format!("{} cannot be renamed to {}", whole.display(), target.display()))?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("the folder of {} cannot be flushed to the disk", target.display()))
}
