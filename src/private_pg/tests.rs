//! Against a real PostgreSQL, as root or as an ordinary user. Each test has a folder of its own.

mod ends;
mod search;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, geteuid, getpgid};
use sqlx::{Connection, PgConnection};

use super::postmaster::is_alive;
use super::{Error, Options, PrivatePg};

const STOP_MAX: Duration = Duration::from_secs(30);

/// A folder under /tmp (a short path that PostgreSQL's account can reach), gone with the test.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> TempFolder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/deskfeed-pg-{}-{count}", std::process::id()));
        // The server's account must reach what the tests make, whatever umask they run with.
        umask(Mode::from_bits_truncate(0o022));
        fs::create_dir(&path).expect("a new folder");
        TempFolder(path)
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn options(&self) -> Options {
        Options {
            folder: self.data(),
            search_path: std::env::var_os("PATH"),
            settings: vec![setting("shared_buffers", "16MB")],
            // A test that fails must not leave a server.
            stop_with_parent: true,
            ..Options::default()
        }
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

fn setting(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

async fn show(connection: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(connection).await.expect("a setting")
}

async fn write_note(url: &str) {
    sqlx::raw_sql("CREATE TABLE note (text text); INSERT INTO note VALUES ('kept')")
        .execute(&mut connect(url).await)
        .await
        .expect("a note");
}

async fn read_note(url: &str) -> String {
    sqlx::query_scalar("SELECT text FROM note").fetch_one(&mut connect(url).await).await.expect("the note")
}

/// For a process that is not our child there is nothing to wait on but its pid.
fn wait_until_gone(pid: i32) {
    let start = Instant::now();
    while is_alive(pid) {
        assert!(start.elapsed() < STOP_MAX, "{pid} is still there");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn data_survive_a_restart_and_stop_returns_when_the_server_is_gone() {
    let temp = TempFolder::new();
    let first = PrivatePg::start(temp.options()).await.expect("started");
    assert!(!first.adopted());
    assert!(first.programs().join("postgres").is_file());
    write_note(&first.url()).await;
    let pid = first.pid();
    first.stop(STOP_MAX).await.expect("stopped");
    assert!(!is_alive(pid));
    assert!(!temp.data().join("pgdata/postmaster.pid").exists());

    let second = PrivatePg::start(temp.options()).await.expect("started again");
    assert_eq!(read_note(&second.url()).await, "kept");
    assert!(connect(&second.url_of("postgres")).await.ping().await.is_ok());
    second.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn the_server_is_durable_and_reached_by_its_socket_alone() {
    let temp = TempFolder::new();
    let mut options = temp.options();
    options.settings.push(setting("max_connections", "33"));
    let pg = PrivatePg::start(options).await.expect("started");
    let mut connection = connect(&pg.url()).await;
    for (name, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("cluster_name", "deskfeed"),
        ("max_wal_size", "4GB"),
        ("server_encoding", "UTF8"),
        ("max_connections", "33"),
        ("shared_buffers", "16MB"),
    ] {
        assert_eq!(show(&mut connection, name).await, value, "{name}");
    }
    assert_eq!(mode(&temp.data().join("pgdata")), 0o700);
    assert_eq!(mode(&temp.data().join("socket")), 0o700);
    drop(connection);
    // Ctrl-C does not reach it.
    let pid = Pid::from_raw(pg.pid());
    assert_eq!(getpgid(Some(pid)), Ok(pid));
    pg.stop(STOP_MAX).await.expect("stopped");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_second_owner_is_told_who_the_first_is() {
    let temp = TempFolder::new();
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    let refused = PrivatePg::start(temp.options()).await.expect_err("in use");
    let us = std::process::id();
    assert!(matches!(refused, Error::InUse { pid: Some(pid), .. } if pid == us), "{refused:?}");
    assert!(refused.to_string().contains("set DESKFEED_DATA to another folder"));
    assert!(connect(&pg.url()).await.ping().await.is_ok());
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn a_running_server_is_found_from_beside() {
    let temp = TempFolder::new();
    let folder = temp.data();
    let find = || PrivatePg::find_running(&folder);
    assert_eq!(find().await.expect("looked"), None);
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    assert_eq!(find().await.expect("looked"), Some(pg.url()));
    pg.stop(STOP_MAX).await.expect("stopped");
    assert_eq!(find().await.expect("looked"), None);
}

#[tokio::test]
async fn a_folder_too_deep_for_a_socket_gets_one_under_tmp() {
    let temp = TempFolder::new();
    let mut options = temp.options();
    options.folder = temp.0.join("a folder, with \"quotes\" + more".repeat(4));
    let pg = PrivatePg::start(options.clone()).await.expect("started");
    let socket = pg.server.socket().path().to_owned();
    assert!(socket.starts_with("/tmp"), "{}", socket.display());
    assert_eq!(mode(&socket), 0o700);
    assert!(connect(&pg.url()).await.ping().await.is_ok());
    let found = PrivatePg::find_running(&options.folder).await.expect("looked");
    assert_eq!(found, Some(pg.url()));
    pg.stop(STOP_MAX).await.expect("stopped");
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_a_broken_start_leaves_is_in_nobodys_way() {
    let temp = TempFolder::new();
    let unfinished = temp.data().join("pgdata.new");
    fs::create_dir_all(&unfinished).expect("a folder");
    fs::write(unfinished.join("PG_VERSION"), "9").expect("a file");
    let mut options = temp.options();
    options.settings.push(setting("shared_buffers", "plenty"));
    let failure = PrivatePg::start(options).await.expect_err("no such size");
    let Error::Failed { log_tail, .. } = &failure else {
        panic!("{failure:?}");
    };
    assert!(log_tail.contains("shared_buffers"), "{log_tail}");
    assert!(!unfinished.exists());

    let pg = PrivatePg::start(temp.options()).await.expect("started");
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn a_postmaster_file_that_names_a_stranger_is_no_server() {
    let temp = TempFolder::new();
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    pg.stop(STOP_MAX).await.expect("stopped");
    let path = temp.data().join("pgdata/postmaster.pid");
    let stranger = format!("{}\n{}\n1\n5432\n/nowhere\n\n", std::process::id(), temp.data().display());
    fs::write(path, stranger).expect("written");
    assert_eq!(PrivatePg::find_running(&temp.data()).await.expect("looked"), None);
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    assert!(!pg.adopted());
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn a_large_log_is_set_aside() {
    let temp = TempFolder::new();
    fs::create_dir(temp.data()).expect("a folder");
    let log = fs::File::create(temp.data().join("postgres.log")).expect("a log");
    log.set_len((64 << 20) + 1).expect("sparse");
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    let lengths =
        ["postgres.log", "postgres.log.1"].map(|name| fs::metadata(temp.data().join(name)).expect("there").len());
    assert!(lengths[0] < 1 << 20 && lengths[1] > 64 << 20, "{lengths:?}");
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn under_root_the_server_is_an_ordinary_user() {
    if !geteuid().is_root() {
        return;
    }
    let temp = TempFolder::new();
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    let process = fs::metadata(format!("/proc/{}", pg.pid())).expect("runs");
    assert_ne!(process.uid(), 0);
    let status = fs::read_to_string(format!("/proc/{}/status", pg.pid())).expect("runs");
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    assert_eq!(groups.map(str::trim), Some(""));
    assert_eq!(fs::metadata(temp.data()).expect("there").uid(), 0);
    write_note(&pg.url()).await;
    pg.stop(STOP_MAX).await.expect("stopped");

    // Another account takes the cluster over.
    let options = Options { user: Some("nobody".to_owned()), ..temp.options() };
    let pg = PrivatePg::start(options).await.expect("started as nobody");
    let owner = fs::metadata(temp.data().join("pgdata/base")).expect("there").uid();
    assert_ne!(owner, process.uid());
    assert_eq!(read_note(&pg.url()).await, "kept");
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn under_root_an_account_that_cannot_do_it_is_named() {
    if !geteuid().is_root() {
        return;
    }
    let temp = TempFolder::new();
    for user in ["no-such-account", "root"] {
        let options = Options { user: Some(user.to_owned()), ..temp.options() };
        let refused = PrivatePg::start(options).await.expect_err("no account");
        assert!(matches!(refused, Error::NoUnprivilegedUser { .. }), "{refused:?}");
        assert!(refused.to_string().contains(user));
    }
    let closed = temp.0.join("closed");
    DirBuilder::new().mode(0o700).create(&closed).expect("a folder");
    let options = Options { folder: closed.join("data"), ..temp.options() };
    let refused = PrivatePg::start(options).await.expect_err("out of reach");
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused:?}");
}
