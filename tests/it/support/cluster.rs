//! A PostgreSQL of one test's own: a primary and its standbys, each in a folder of its own, to be stopped,
//! started and promoted.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};

use super::postgres::{find_server_programs, make_schema, server_programs};

/// How long anything may take that a server does, on a machine that has much else to do.
const BOUNDED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// Where the servers of one test are. When it is dropped they end, and everything is removed.
pub struct Cluster {
    folder: PathBuf,
    account: Option<User>,
    servers: std::sync::atomic::AtomicU32,
    /// Ends the servers and removes the folder when its standard input ends: with the test, or with its process.
    keeper: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().expect("it was started here");
    }
}

/// A server, running or not.
#[derive(Debug)]
pub struct Server {
    pub name: String,
    data: PathBuf,
    port: u16,
    /// Whom its programs run as.
    account: Option<User>,
}

/// How a server is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Everybody is sent away; what was written is kept in order.
    Fast,
    /// As a crash.
    AtOnce,
}

impl Cluster {
    /// Nothing runs yet.
    pub fn new() -> Self {
        let account = account();
        let folder = new_folder("cluster", account.as_ref());
        let script = "cat >/dev/null
            for pid in \"$1\"/*/postmaster.pid; do
                [ ! -e \"$pid\" ] || kill -QUIT \"$(head -n 1 \"$pid\")\"
            done
            for _ in $(seq 200); do
                ls \"$1\"/*/postmaster.pid >/dev/null 2>&1 || break
                sleep 0.05
            done
            rm -rf \"$1\"";
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).arg(&folder).process_group(0);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { folder, account, servers: 0.into(), keeper: keeper.expect("a shell") }
    }

    fn server(&self, name: &str) -> Server {
        let number = self.servers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let data = self.folder.join(format!("{number}-{name}"));
        Server { name: name.to_owned(), data, port: free_port(), account: self.account.clone() }
    }

    /// A running primary with the database `deskfeed`, its roles and its schema.
    pub async fn primary(&self) -> Server {
        let server = self.server("primary");
        copy_folder(template().await, &server.data, self.account.as_ref()).await;
        server.configure("");
        server.start().await;
        server
    }

    /// A running standby, made by a base backup of a server that runs; it follows `upstream`, which may be a
    /// proxy in front of that server.
    pub async fn standby(&self, of: &Server, upstream_port: u16, name: &str) -> Server {
        let server = self.server(name);
        server.copy_from(of).await;
        server.follow(upstream_port);
        server.start().await;
        server
    }
}

impl Server {
    /// The database, as a superuser.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/deskfeed?sslmode=disable", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).expect("it runs");
        text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a process number")
    }

    /// A connection, as soon as there is one to be had.
    pub async fn sql(&self) -> PgConnection {
        let until = Instant::now() + BOUNDED;
        loop {
            match PgConnection::connect(&self.url()).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < until, "{}: {error}", self.name),
            }
            sleep(LOOK).await;
        }
    }

    /// Makes a copy of a server that runs. Its settings are to be written next.
    async fn copy_from(&self, of: &Self) {
        let mut backup = self.command("pg_basebackup");
        if Path::new(backup.as_std().get_args().last().expect("the program")).is_file() {
            backup.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--pgdata"]).arg(&self.data);
            backup.args(["--dbname", &format!("host=127.0.0.1 port={} user=postgres sslmode=disable", of.port)]);
            finish(backup).await;
            return;
        }
        // Some distributions have the server's programs alone: the same, by hand.
        let mut connection = of.sql().await;
        let begin = "select pg_backup_start('standby', fast => true)::text";
        sqlx::query_scalar::<_, String>(begin).fetch_one(&mut connection).await.expect("a backup begins");
        copy_folder(&of.data, &self.data, self.account.as_ref()).await;
        let label: String = sqlx::query_scalar("select labelfile from pg_backup_stop(wait_for_archive => false)")
            .fetch_one(&mut connection)
            .await
            .expect("the backup ends");
        for stale in ["postmaster.pid", "postmaster.opts", "standby.signal", "backup_label"] {
            let _absent = fs::remove_file(self.data.join(stale));
        }
        self.write("backup_label", &label);
    }

    /// Writes all settings anew.
    fn configure(&self, more: &str) {
        let _absent = fs::remove_file(self.data.join("postgresql.auto.conf"));
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nmax_connections = 200\n\
             shared_buffers = 32MB\nwal_keep_size = 256MB\nmax_wal_senders = 10\nwal_retrieve_retry_interval = 100ms\n\
             wal_receiver_status_interval = 1s\nlog_min_messages = warning\nautovacuum_naptime = 1min\n{more}",
            self.port
        );
        self.write("postgresql.conf", &settings);
    }

    /// Makes it a standby of the server at this port, under its own name.
    pub fn follow(&self, upstream_port: u16) {
        self.configure(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={upstream_port} user=postgres application_name={} sslmode=disable gssencmode=disable'\n\
             recovery_target_timeline = 'latest'\n",
            self.name
        ));
        self.write("standby.signal", "");
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.data.join(name);
        fs::write(&path, text).expect("it is written");
        if let Some(account) = &self.account {
            nix::unistd::chown(&path, Some(account.uid), Some(account.gid)).expect("root may");
        }
    }

    /// One of the server's programs, as the account that it runs as.
    fn command(&self, program: &str) -> tokio::process::Command {
        command(self.account.as_ref(), program)
    }

    async fn control(&self, arguments: &[&str]) {
        let mut control = self.command("pg_ctl");
        control.arg("-D").arg(&self.data).args(["-w", "-s", "-t", "60"]).args(arguments);
        finish(control).await;
    }

    /// Starts it and waits until it answers.
    pub async fn start(&self) {
        let log = self.data.with_extension("log").display().to_string();
        let until = Instant::now() + BOUNDED;
        loop {
            let mut control = self.command("pg_ctl");
            control.arg("-D").arg(&self.data).args(["-w", "-s", "-t", "60", "-l", &log, "start"]);
            // The server keeps what it inherits.
            control.stdout(Stdio::null()).stderr(Stdio::null());
            let ended = timeout(BOUNDED, control.status()).await.expect("it starts in time").expect("pg_ctl runs");
            if ended.success() {
                return;
            }
            // What is left of a server that was killed is in the way for a moment.
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < until, "{} does not start: {}", self.name, said());
            sleep(LOOK).await;
        }
    }

    /// Ends its first process with a signal, as something would that goes wrong, and waits until that is gone.
    pub async fn crash(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid());
        kill(pid, signal).expect("it runs");
        let until = Instant::now() + BOUNDED;
        // Nobody may have asked yet how it ended.
        let is_dead = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => kill(pid, None).is_err(),
        };
        while !is_dead() {
            assert!(Instant::now() < until, "{} does not end", self.name);
            sleep(LOOK).await;
        }
    }

    pub async fn stop(&self, end: End) {
        let mode = if end == End::Fast { "fast" } else { "immediate" };
        self.control(&["-m", mode, "stop"]).await;
    }

    /// Makes a standby a primary, and waits until it takes writes.
    pub async fn promote(&self) {
        self.control(&["promote"]).await;
    }

    /// Removes what is left of a server that does not run.
    pub fn remove(self) {
        fs::remove_dir_all(&self.data).expect("its own folder");
    }

    /// Changes a setting and waits until everybody sees it.
    pub async fn set(&self, name: &str, value: &str) {
        let mut connection = self.sql().await;
        let sql = format!("alter system set {name} = {value}; select pg_reload_conf()");
        for part in sql.split("; ") {
            sqlx::raw_sql(AssertSqlSafe(part.to_owned())).execute(&mut connection).await.expect("a superuser may");
        }
        let until = Instant::now() + BOUNDED;
        loop {
            let now: String = sqlx::query_scalar("select current_setting($1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await
                .expect("a setting");
            if format!("'{now}'") == value || now == value {
                return;
            }
            assert!(Instant::now() < until, "{name} stays {now}");
            sleep(LOOK).await;
        }
    }

    /// Has commits wait for any one standby from now on.
    pub async fn replicate_synchronously(&self, standbys: usize) {
        self.set("synchronous_standby_names", "'*'").await;
        self.has_standbys(standbys, true).await;
    }

    /// Waits until as many standbys follow and have everything that is written by now.
    pub async fn has_standbys(&self, count: usize, synchronous: bool) {
        let mut connection = self.sql().await;
        let until = Instant::now() + BOUNDED;
        let written: String = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut connection)
            .await
            .expect("a position");
        loop {
            let there: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_replication
                 where state = 'streaming' and flush_lsn >= $1::pg_lsn and (not $2 or sync_state in ('sync', 'potential', 'quorum'))",
            )
            .bind(&written)
            .bind(synchronous)
            .fetch_one(&mut connection)
            .await
            .expect("a count");
            if usize::try_from(there).is_ok_and(|there| there >= count) {
                return;
            }
            assert!(Instant::now() < until, "{}: {there} of {count} standbys follow", self.name);
            sleep(LOOK).await;
        }
    }

    /// Waits until this many backends wait for a standby; gives their numbers. Notes of who polled and which token
    /// was used, which nobody waits for, do not count.
    pub async fn has_sync_waiters(&self, count: usize) -> Vec<i32> {
        let mut connection = self.sql().await;
        let until = Instant::now() + BOUNDED;
        loop {
            let waiting: Vec<i32> =
                sqlx::query_scalar("select pid from pg_stat_activity where wait_event = 'SyncRep' and query not like '%.note\\_%' order by pid")
                    .fetch_all(&mut connection)
                    .await
                    .expect("PostgreSQL answers");
            if waiting.len() >= count {
                return waiting;
            }
            assert!(Instant::now() < until, "{} of {count} backends wait for a standby", waiting.len());
            sleep(LOOK).await;
        }
    }
}

/// Whether the tests can have servers of their own here.
pub fn is_possible() -> bool {
    find_server_programs().is_some()
}

/// Whom the servers run as, if the tests run as root: a server does not.
fn account() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    Some(found.expect("there is an account that is not root's"))
}

fn new_folder(name: &str, account: Option<&User>) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("deskfeed-{name}-{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir(&folder).expect("a folder");
    if let Some(account) = account {
        nix::unistd::chown(&folder, Some(account.uid), Some(account.gid)).expect("root may");
    }
    folder
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn command(account: Option<&User>, program: &str) -> tokio::process::Command {
    let program = server_programs().join(program);
    let mut command = match account {
        Some(account) => {
            let mut command = tokio::process::Command::new("setpriv");
            command.args(["--reuid", &account.uid.to_string(), "--regid", &account.gid.to_string(), "--clear-groups"]);
            command.arg(program);
            command
        }
        None => {
            // As with an account, the program is the last argument so far.
            let mut command = tokio::process::Command::new("env");
            command.arg(program);
            command
        }
    };
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.current_dir("/").kill_on_drop(true);
    command
}

async fn finish(mut command: tokio::process::Command) {
    let ended = timeout(BOUNDED, command.output()).await.expect("it ends in time").expect("the program runs");
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{:?}: {said}", command.as_std());
}

async fn copy_folder(from: &Path, to: &Path, account: Option<&User>) {
    let mut copy = match account {
        Some(account) => {
            let mut copy = tokio::process::Command::new("setpriv");
            copy.args([
                "--reuid",
                &account.uid.to_string(),
                "--regid",
                &account.gid.to_string(),
                "--clear-groups",
                "cp",
            ]);
            copy
        }
        None => tokio::process::Command::new("cp"),
    };
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to).stdin(Stdio::null()).kill_on_drop(true);
    // A file may go away while a running server's folder is copied.
    let _some_are_gone = timeout(BOUNDED, copy.output()).await.expect("it ends in time").expect("cp runs");
    assert!(to.join("PG_VERSION").is_file(), "{} is not copied", from.display());
}

/// A stopped server with the database, its roles and its schema, made once.
async fn template() -> &'static Path {
    static TEMPLATE: OnceCell<(PathBuf, std::sync::Mutex<Cluster>)> = OnceCell::const_new();
    let made = TEMPLATE.get_or_init(|| async {
        let cluster = Cluster::new();
        let server = cluster.server("template");
        let mut initdb = server.command("initdb");
        initdb.arg("-D").arg(&server.data);
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=4"]);
        finish(initdb).await;
        server.configure("");
        server.start().await;
        let maintenance = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", server.port);
        let mut connection = PgConnection::connect(&maintenance).await.expect("the server answers");
        let create = "create database deskfeed encoding 'UTF8' locale 'C' template template0";
        sqlx::raw_sql(create).execute(&mut connection).await.expect("a database is made");
        make_schema(&server.url()).await;
        server.stop(End::Fast).await;
        (server.data, std::sync::Mutex::new(cluster))
    });
    &made.await.0
}
