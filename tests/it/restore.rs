//! Backup and restore as docs/dba.md has it: its commands are run as they stand there, but for the
//! folders, the addresses and the time.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::unistd::{User, geteuid};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Client, TestDesk,
    desk::{base, start_replica},
    postgres::{self, OWNER},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// The commands of the section, block by block.
fn commands() -> Vec<&'static str> {
    let document = include_str!("../../docs/dba.md");
    let (_, section) = document.split_once("\n## Backup and restore\n").expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    section.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().expect("its end")).collect()
}

/// A server of this test's own.
struct Scratch {
    folder: PathBuf,
    /// Ends the servers and removes the folder when its standard input ends: with the test, or with its process.
    keeper: Child,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().expect("it was started here");
    }
}

impl Scratch {
    /// A cluster with the database `deskfeed`, its roles and its schema.
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("deskfeed-restore-{}", uuid::Uuid::new_v4().simple()));
        for made in ["bin", "srv"] {
            fs::create_dir_all(folder.join(made)).expect("a folder");
        }
        let program = Path::new(env!("CARGO_BIN_EXE_deskfeed"));
        std::os::unix::fs::symlink(program, folder.join("bin/deskfeed")).expect("a link");
        let account = if geteuid().is_root() { Some(account()) } else { None };
        for name in account.iter().flat_map(|_| ["initdb", "pg_ctl"]) {
            // A server does not run as root, and what root has made is to be its account's.
            let user = account.as_ref().expect("an account");
            let wrapper = format!(
                "#!/bin/sh\nchown -R {}:{} '{folder}/srv' && cd '{folder}/srv' && exec setpriv --reuid {} --regid {} --clear-groups '{}' \"$@\"\n",
                user.uid,
                user.gid,
                user.uid,
                user.gid,
                postgres::server_programs().join(name).display(),
                folder = folder.display()
            );
            let path = folder.join("bin").join(name);
            fs::write(&path, wrapper).expect("it is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
        }
        let script = "cat >/dev/null
            for data in \"$1\"/srv/data \"$1\"/srv/restored; do
                [ ! -e \"$data/postmaster.pid\" ] || pg_ctl -D \"$data\" -m immediate -w stop
            done
            rm -rf \"$1\"";
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).arg(&folder).env("PATH", path_of(&folder)).process_group(0);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let scratch = Self { folder, keeper: keeper.expect("a shell") };
        scratch
            .run(
                "initdb -D /srv/deskfeed/data -A trust -U postgres -E UTF8 --locale=C
                 cat >>/srv/deskfeed/data/postgresql.conf <<'END'
listen_addresses = ''
unix_socket_directories = '/srv/deskfeed'
shared_buffers = 16MB
END
                 pg_ctl -D /srv/deskfeed/data -l /srv/deskfeed/server.log -w start
                 createdb --encoding=UTF8 --locale=C --template=template0 deskfeed",
            )
            .await;
        postgres::make_schema(&scratch.url("deskfeed")).await;
        scratch
    }

    fn srv(&self) -> String {
        self.folder.join("srv").display().to_string()
    }

    /// A database of its, as a superuser.
    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.srv())
    }

    /// Runs commands of the document.
    async fn run(&self, commands: &str) -> String {
        let mut commands = commands.replace("/srv/deskfeed", &self.srv());
        for database in ["deskfeed", "desk2"] {
            let url = postgres::as_role(&self.url(database), OWNER);
            commands = commands.replace(&format!("postgres://deskfeed_owner:...@db/{database}"), &format!("'{url}'"));
        }
        let mut shell = tokio::process::Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &commands]).current_dir(env!("CARGO_MANIFEST_DIR"));
        shell.env("PATH", path_of(&self.folder)).env("PGHOST", self.srv()).env("PGUSER", "postgres");
        shell.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let ended = timeout(PATIENCE, shell.output()).await.expect("it ends in time").expect("bash runs");
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        let log = fs::read_to_string(self.folder.join("srv/server.log")).unwrap_or_default();
        assert!(ended.status.success(), "{commands}\n{said}\n{log}");
        said
    }

    async fn sql(&self) -> PgConnection {
        PgConnection::connect(&self.url("deskfeed")).await.expect("the server answers")
    }
}

/// Whom the server runs as when the tests run as root.
fn account() -> User {
    let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    found.expect("there is an account that is not root's")
}

fn path_of(folder: &Path) -> std::ffi::OsString {
    let mut folders = vec![folder.join("bin"), postgres::server_programs()];
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    std::env::join_paths(folders).expect("plain names")
}

/// Somebody who sends one message after the other.
struct Sender {
    /// The version of each that was acknowledged, in their order.
    acked: Arc<Mutex<Vec<i64>>>,
    begun: Arc<AtomicUsize>,
    goes_on: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Sender {
    fn start(web: &Client) -> Self {
        let (acked, begun) = (Arc::<Mutex<Vec<i64>>>::default(), Arc::<AtomicUsize>::default());
        let goes_on = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn({
            let (web, acked, begun, goes_on) =
                (web.clone(), Arc::clone(&acked), Arc::clone(&begun), Arc::clone(&goes_on));
            async move {
                while goes_on.load(Ordering::SeqCst) {
                    let number = begun.fetch_add(1, Ordering::SeqCst);
                    let sent = web.send_id("s1", &format!("m{number}"), &text(number)).await.ok();
                    acked.lock().expect("no panic").push(sent["Version"].as_i64().expect("a version"));
                }
            }
        });
        Self { acked, begun, goes_on, task }
    }

    fn acked(&self) -> usize {
        self.acked.lock().expect("no panic").len()
    }

    /// Waits until it has sent as many more.
    async fn sends(&self, more: usize) {
        let (until, wanted) = (Instant::now() + PATIENCE, self.acked() + more);
        while self.acked() < wanted {
            assert!(Instant::now() < until, "nothing is sent");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> Vec<i64> {
        self.goes_on.store(false, Ordering::SeqCst);
        self.task.await.expect("no panic");
        self.acked.lock().expect("no panic").clone()
    }
}

fn text(number: usize) -> String {
    format!("text {number}")
}

/// Version and text of every message in a feed.
async fn messages(reader: &Client) -> Vec<(i64, String)> {
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let page = reader.query(&format!("a={after}&wait=0&limit=1000&t=Message")).await;
        found.extend(page.versions().into_iter().zip(page.contents()));
        after = page.next();
        if !page.more() {
            return found;
        }
    }
}

/// Sees to it that all that was written so far is in the archive.
async fn archive(sql: &mut PgConnection) {
    let last: String =
        sqlx::query_scalar("select pg_walfile_name(pg_switch_wal())").fetch_one(&mut *sql).await.expect("a segment");
    let until = Instant::now() + PATIENCE;
    loop {
        let archived: Option<String> = sqlx::query_scalar("select last_archived_wal from pg_stat_archiver")
            .fetch_one(&mut *sql)
            .await
            .expect("a row");
        if archived.is_some_and(|archived| archived >= last) {
            return;
        }
        assert!(Instant::now() < until, "{last} is not archived");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_to_a_point_in_time_has_what_was_acknowledged_and_readers_are_told() {
    let blocks = commands();
    let [set_up, back_up, restore, renew, _dump] = blocks[..] else {
        panic!("the section has other commands: {blocks:?}")
    };
    let scratch = Scratch::start().await;
    scratch.run(set_up).await;
    let desk = TestDesk::on(scratch.url("deskfeed"), 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let sender = Sender::start(&web);
    sender.sends(20).await;
    scratch.run(back_up).await;
    sender.sends(50).await;

    // The point: what is acknowledged by now is before it, what is begun from now on is after it.
    let before = sender.acked();
    let mut sql = scratch.sql().await;
    let point: String =
        sqlx::query_scalar("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
            .fetch_one(&mut sql)
            .await
            .expect("a time");
    let after = sender.begun.load(Ordering::SeqCst);
    sender.sends(50).await;
    let acked = sender.stop().await;
    let lost_head = *acked.last().expect("versions");
    let epoch = ann.query("b=now").await.header("feed-epoch").to_owned();
    let parked = tokio::spawn({
        let (ann, parameters) = (ann.clone(), format!("a={lost_head}&wait=60&epoch={epoch}"));
        async move { ann.query(&parameters).await }
    });
    archive(&mut sql).await;
    drop(sql);

    assert!(restore.contains("'2026-11-24 03:00:00+00'"), "{restore}");
    scratch.run(&restore.replace("2026-11-24 03:00:00+00", &point)).await;
    let said = scratch.run(renew).await;
    assert!(
        said.contains("the next append begins a new epoch") && said.contains("The schema is what the migrations make."),
        "{said}"
    );

    // A replica that was never stopped tells its parked reader; one that starts now tells everybody else.
    let told = timeout(PATIENCE, parked).await.expect("it is told").expect("no panic");
    assert_eq!(told.code(), 41001);
    let replica = start_replica(&desk.url, &[]).await;
    let (ann, web) = (ann.at(&base(&replica)), web.at(&base(&replica)));
    let found = messages(&ann).await;
    let expected: Vec<(i64, String)> = (0..before).map(|number| (acked[number], text(number))).collect();
    assert_eq!(found[..before], expected, "what was acknowledged before the point, in its order");
    assert!(
        found.len() <= after,
        "nothing of what was begun after it: {} of {}, at most {after}",
        found.len(),
        acked.len()
    );
    let head = found.last().expect("messages").0;

    let above = ann.query(&format!("a={lost_head}&wait=0")).await;
    assert_eq!((above.code(), above.json()["head"].as_i64()), (41001, Some(head)));
    // Nothing was appended since: it is the old history still, of which those who were not ahead have missed nothing.
    assert_eq!(above.json()["epoch"].as_str(), Some(epoch.as_str()));
    assert_eq!(ann.query(&format!("a={head}&wait=0&epoch={epoch}")).await.next(), head);

    // What was lost is sent again under its Id, and gets another version, the first of a new history.
    let lost = acked.len() - 1;
    let again = web.send_id("s1", &format!("m{lost}"), &text(lost)).await.ok();
    assert_eq!(again["Version"].as_i64(), Some(head + 1));
    let goes_on = ann.query(&format!("a={head}&wait=0&epoch={epoch}")).await;
    assert_eq!(goes_on.versions(), [head + 1], "who was not ahead goes on");
    let renewed = goes_on.header("feed-epoch").to_owned();
    assert_ne!(renewed, epoch);
    assert_eq!(ann.query(&format!("a={}&wait=0&epoch={epoch}", head + 1)).await.code(), 41001, "it was another event");
    // When the store has grown past a reader, the epoch is all that tells.
    for number in 0..=lost_head - head {
        web.send("s1", &format!("another {number}")).await.ok();
    }
    assert_eq!(ann.query(&format!("a={lost_head}&wait=0&epoch={epoch}")).await.code(), 41001);
    assert!(ann.query(&format!("a={lost_head}&wait=0&epoch={renewed}")).await.contents().len() > 1);
    replica.stop().await;
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_that_is_restored_goes_on_as_another_history() {
    let blocks = commands();
    let scratch = Scratch::start().await;
    let desk = TestDesk::on(scratch.url("deskfeed"), 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let sender = Sender::start(&web);
    sender.sends(20).await;
    ann.query("c=1&wait=0").await.ok();
    let before = sender.acked();
    let said = scratch.run(blocks.last().expect("commands")).await;
    assert!(said.contains("The schema is what the migrations make."), "{said}");
    sender.sends(20).await;
    let acked = sender.stop().await;
    let lost_head = *acked.last().expect("versions");
    let epoch = ann.query("b=now").await.header("feed-epoch").to_owned();

    let restored = TestDesk::on(scratch.url("desk2"), 1, &[]).await;
    let there = ann.at(&restored.base(0));
    let found = messages(&there).await;
    assert!(before <= found.len() && found.len() < acked.len(), "one moment: {} of {}", found.len(), acked.len());
    assert_eq!(found, messages(&ann).await[..found.len()], "the same, in the same order");
    assert_eq!(there.query("wait=0").await.types()[0], "Message", "acknowledgements are there, too");
    let told = there.query(&format!("a={lost_head}&wait=0")).await;
    assert_eq!(told.code(), 41001);
    assert_ne!(told.json()["epoch"], epoch, "although the cluster is the same");
    let sent = web.at(&restored.base(0)).send("s1", "it goes on").await.ok();
    assert_eq!(sent["Version"], told.json()["head"].as_i64().expect("a head") + 1);
    restored.stop().await;
    desk.stop().await;
}
