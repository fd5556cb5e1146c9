//! The tests' PostgreSQL: `TEST_DATABASE_URL` if set, else a container where a Docker engine
//! answers, else the same private PostgreSQL as the service's. One server for the whole run, one
//! database per test.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use deskfeed::{
    private_pg::{Options, PrivatePg},
    store::{
        pool::{Db, Purpose},
        schema,
    },
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testcontainers::{ImageExt, runners::AsyncRunner};
use testcontainers_modules::postgres::Postgres;
use url::Url;

/// The image that a Docker engine is asked for.
const IMAGE_TAG: &str = "15-bookworm";
/// Made once, then copied for each test.
const TEMPLATE: &str = "deskfeed_template";

/// What the roles of `deploy/roles.sql` log in with here: a superuser does not hide a missing right.
pub const OWNER: &str = "deskfeed_owner";
pub const APPLICATION: &str = "deskfeed_app";
pub const READONLY: &str = "deskfeed_readonly";
pub const MONITOR: &str = "deskfeed_monitor";
pub const ERASER: &str = "deskfeed_eraser";
/// On a test server; the same for all of them.
pub const PASSWORD: &str = "of-the-tests";

/// Puts another history into a store: one that knows nothing of the history before.
pub const ANOTHER_HISTORY: &str = "
     insert into histories (first_version, system_identifier, ordinal, timeline)
     select 1, system_identifier, ordinal + 1, timeline from histories order by ordinal desc limit 1;
     update store set history = (select name from histories order by ordinal desc limit 1);
     delete from histories where name <> (select history from store)";

/// A database with the current schema, of one test. It is left behind when the test ends: the server goes as a whole.
pub async fn new_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("deskfeed_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    create(&name, Some(&template())).await
}

/// A database with the current schema, whose partitions hold so many versions each.
pub async fn database_in_partitions(width: i64) -> String {
    let url = new_database().await;
    let mut owner = PgConnection::connect(&as_role(&url, OWNER)).await.expect("the owner gets in");
    let narrow = format!(
        "do $$ declare name text; begin
             for name in select p.name from event_partitions() p loop
                 execute format('drop table %I', name);
             end loop;
             update store set partition_width = {width};
             perform make_partitions_ahead(1);
         end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(narrow)).execute(&mut owner).await.expect("the partitions are made anew");
    owner.close().await.expect("the connection closes");
    url
}

/// A database with nothing in it.
pub async fn empty_database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("deskfeed_empty_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    create(&name, None).await
}

/// A database with nothing in it but the rights that `deploy/roles.sql` gives.
pub async fn database_of_roles() -> String {
    let url = empty_database().await;
    make_roles(&url).await;
    url
}

fn template() -> String {
    format!("{TEMPLATE}_{}", std::process::id())
}

async fn create(name: &str, template: Option<&str>) -> String {
    let server = server();
    let mut connection = PgConnection::connect(server).await.expect("the tests' PostgreSQL answers");
    let sql = match template {
        Some(template) => format!("create database {name} template {template}"),
        None => format!("create database {name} encoding 'UTF8' locale 'C' template template0"),
    };
    // Copying a template fails while another copy of it is being made.
    let mut tries = 0;
    while let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut connection).await {
        tries += 1;
        assert!(tries < 200 && error.to_string().contains("is being accessed by other users"), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    of_database(server, name)
}

/// The URL of another database of the same server.
pub fn of_database(url: &str, name: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_path(name);
    url.to_string()
}

/// The same database, as one of the roles of `deploy/roles.sql`.
pub fn as_role(url: &str, role: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_username(role).expect("a URL with a host");
    url.set_password(Some(PASSWORD)).expect("a URL with a host");
    url.to_string()
}

/// The same database, as the role that the service runs as.
pub fn as_application(url: &str) -> String {
    as_role(url, APPLICATION)
}

/// The server's URL. Starts it at the first call.
fn server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (ready, started) = mpsc::channel();
        // A thread with a runtime of its own: a test's runtime ends with the test.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let (url, _keep) = start().await;
                make_template(&url).await;
                ready.send(url).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        started.recv().expect("the tests' PostgreSQL starts")
    })
}

/// Where the private server's programs are, if there is one.
static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// The folder of a server's own programs, `pg_ctl` and `pg_basebackup` too: of `DESKFEED_PG_BIN`, else the
/// newest that is installed.
pub fn server_programs() -> PathBuf {
    let found = find_server_programs();
    found.expect("pg_ctl is there (Debian: the package postgresql; else name its folder by DESKFEED_PG_BIN)")
}

/// [`server_programs`], if there are any.
pub fn find_server_programs() -> Option<PathBuf> {
    let asked = std::env::var_os("DESKFEED_PG_BIN").map(PathBuf::from);
    let mut folders: Vec<PathBuf> = asked.iter().flat_map(|folder| [folder.clone(), folder.join("bin")]).collect();
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<PathBuf> = installed.map(|version| version.path().join("bin")).collect();
    installed.sort();
    folders.extend(installed.into_iter().rev());
    folders.into_iter().find(|folder| folder.join("pg_ctl").is_file())
}

/// A psql: of the PATH, of an installed PostgreSQL, or of the private server's programs.
fn psql() -> PathBuf {
    let mut folders: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    folders.extend(std::env::var_os("DESKFEED_PG_BIN").map(PathBuf::from));
    folders.extend(PROGRAMS.get().cloned());
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(installed.map(|version| version.path().join("bin")));
    let found = folders.into_iter().map(|folder| folder.join("psql")).find(|psql| psql.is_file());
    found.expect("psql is there (Debian: the package postgresql-client)")
}

/// Runs psql as `deploy/` and `deskfeed migrate print` say, on a script or a file; gives whether it
/// succeeded, and what it said.
pub async fn run_psql(url: &str, arguments: &[&str], script: &str) -> (bool, String) {
    use tokio::io::AsyncWriteExt;
    let mut psql = tokio::process::Command::new(psql());
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut psql = psql.spawn().expect("psql runs");
    let mut input = psql.stdin.take().expect("piped");
    // It may have ended before it has read all: then it says why.
    let _ = input.write_all(script.as_bytes()).await;
    drop(input);
    let ended = tokio::time::timeout(Duration::from_secs(60), psql.wait_with_output()).await;
    let output = ended.expect("psql ends in time").expect("psql runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What must live as long as the server is needed.
#[expect(dead_code, reason = "dropping it ends the server")]
enum Keep {
    Nothing,
    Container(Box<testcontainers::ContainerAsync<Postgres>>, ChildStdin),
    Private(Box<PrivatePg>),
}

async fn start() -> (String, Keep) {
    let url = std::env::var("TEST_DATABASE_URL").unwrap_or_default();
    if !url.is_empty() {
        eprintln!("tests use the PostgreSQL of TEST_DATABASE_URL");
        return (url, Keep::Nothing);
    }
    if docker_answers().await {
        eprintln!("tests use a PostgreSQL in a container");
        let container = Postgres::default()
            .with_fsync_enabled()
            .with_tag(IMAGE_TAG)
            .with_startup_timeout(Duration::from_secs(120))
            .with_cmd(["postgres", "-c", "max_connections=1000", "-c", "fsync=on"])
            .start()
            .await
            .expect(
                "a Docker engine answers, but the container does not start; stop the engine or set TEST_DATABASE_URL",
            );
        let reaper = remove_with_this_process(container.id());
        let host = container.get_host().await.expect("the container has a host");
        let port = container.get_host_port_ipv4(5432).await.expect("the container has a port");
        return (
            format!("postgres://postgres:postgres@{host}:{port}/postgres"),
            Keep::Container(Box::new(container), reaper),
        );
    }
    eprintln!("tests use a private PostgreSQL");
    let private = private_server(private_folder("tests")).await;
    PROGRAMS.set(private.programs().to_owned()).expect("one server");
    (private.url(), Keep::Private(Box::new(private)))
}

/// A name for the folder of a private server; it is removed after this process.
pub fn private_folder(name: &str) -> PathBuf {
    // Process ids come again; a folder of an earlier run must not be found.
    let folder = std::env::temp_dir().join(format!("deskfeed-{name}-{}", uuid::Uuid::new_v4().simple()));
    remove_after_this_process(&folder);
    folder
}

/// The private server of a folder, which ends with this process, however that ends.
pub async fn private_server(folder: PathBuf) -> PrivatePg {
    let options = Options {
        folder,
        search_path: std::env::var_os("PATH"),
        settings: vec![
            ("max_connections".to_owned(), "1000".to_owned()),
            ("shared_buffers".to_owned(), "256MB".to_owned()),
        ],
        programs: std::env::var_os("DESKFEED_PG_BIN").map(Into::into),
        stop_with_parent: true,
        ..Options::default()
    };
    PrivatePg::start(options).await.expect("a private PostgreSQL starts")
}

/// Nothing runs when a test process ends, so a shell waits for that, then for the server to be gone,
/// and removes its folder.
fn remove_after_this_process(folder: &Path) {
    let script = "cat >/dev/null
        for _ in $(seq 600); do [ -e \"$1/pgdata/postmaster.pid\" ] || break; sleep 0.1; done
        rm -rf \"$1\"";
    let mut remover = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(folder)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("a shell");
    // Its standard input ends when this process does.
    std::mem::forget(remover.stdin.take());
}

/// Whether an engine answers. The client alone proves nothing.
async fn docker_answers() -> bool {
    if std::env::var("DESKFEED_TEST_DOCKER").is_ok_and(|value| value == "0") {
        return false;
    }
    engine("GET", "/_ping").await.is_ok_and(|answer| answer.starts_with("HTTP/1.") && answer[8..].starts_with(" 200"))
}

/// Asks the engine.
async fn engine(method: &str, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let asked = async {
        let request = format!("{method} {path} HTTP/1.0\r\nHost: docker\r\n\r\n");
        let mut answer = String::new();
        if let Some(address) = host.strip_prefix("tcp://") {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(request.as_bytes()).await?;
            stream.read_to_string(&mut answer).await?;
        } else {
            let socket = host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
            let mut stream = tokio::net::UnixStream::connect(socket).await?;
            stream.write_all(request.as_bytes()).await?;
            stream.read_to_string(&mut answer).await?;
        }
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
}

const CONTAINER: &str = "DESKFEED_TEST_CONTAINER";

/// Nothing runs when a test process ends, so another process removes its container: this very
/// program, running the one test below until its standard input ends.
fn remove_with_this_process(container: &str) -> ChildStdin {
    let mut reaper = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "support::postgres::removes_the_container_when_the_tests_end"])
        .env(CONTAINER, container)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a second process");
    reaper.stdin.take().expect("its standard input")
}

#[tokio::test]
#[ignore = "run by the tests themselves, in a process of its own"]
async fn removes_the_container_when_the_tests_end() {
    let container = std::env::var(CONTAINER).expect("the container's id");
    let ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    ended.await.expect("no panic").expect("the end of standard input");
    let removed =
        engine("DELETE", &format!("/containers/{container}?force=true&v=true")).await.expect("the engine answers");
    assert!(removed[8..].starts_with(" 204"), "{removed}");
}

async fn make_template(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let name = template();
    for sql in [
        format!("drop database if exists {name}"),
        format!("create database {name} encoding 'UTF8' locale 'C' template template0"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("a template database is made");
    }
    make_schema(&of_database(url, &name)).await;
}

/// Makes the roles, and as the owner the schema, in an empty database.
pub async fn make_schema(url: &str) {
    make_roles(url).await;
    let db = Db::new(&as_role(url, OWNER), 1).expect("a URL");
    let mut connection = db.connect(Purpose::Commands).await.expect("the owner gets in");
    schema::migrate(&mut connection).await.expect("the migrations apply");
    connection.close().await.expect("the connection closes");
}

/// What `deploy/roles.sql` does, and a password for each role. A role that is there already (of a
/// server that others use, too) is left as it is.
async fn make_roles(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let script = include_str!("../../../deploy/roles.sql");
    let (plain, _for_psql) = script.split_once("\n-- ---- from here on").expect("the part that needs psql");
    sqlx::raw_sql(plain).execute(&mut connection).await.expect("the tests' role may make roles");
    for role in [OWNER, APPLICATION, READONLY, MONITOR, ERASER] {
        // Where the tests' role is no superuser it must be able to do what these are kept from.
        let sql = format!(
            "do $$ begin
                 if not (select rolcanlogin from pg_roles where rolname = '{role}') then
                     alter role {role} login password '{PASSWORD}';
                 end if;
                 if not pg_has_role('{role}', 'usage') then
                     grant {role} to current_user;
                 end if;
             end $$"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("the roles log in");
    }
    // What the rest of the script does, where the tests' role is a superuser.
    let monitors = "do $$ begin
        if (select rolsuper from pg_roles where rolname = current_user) and not pg_has_role('deskfeed_monitor', 'pg_monitor', 'usage') then
            grant pg_monitor to deskfeed_monitor;
        end if;
    end $$";
    sqlx::raw_sql(monitors).execute(&mut connection).await.expect("a superuser may");
    connection.close().await.expect("the connection closes");
}
