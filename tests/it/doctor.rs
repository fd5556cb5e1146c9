//! `deskfeed doctor`: what is wrong is found, each thing by name; what is well is left alone.

use std::time::Duration;

use deskfeed::private_pg::{Options, PrivatePg};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;

use crate::support::{
    db_proxy::{DbProxy, Mode},
    desk::ADMIN_TOKEN,
    postgres::{self, MONITOR, OWNER},
    process::{self, Service},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the doctor says.
struct Report {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Report {
    /// The severity of what was found by a check, with these words in it.
    fn severity(&self, check: &str, words: &str) -> Option<&str> {
        self.findings
            .iter()
            .find(|finding| {
                finding["check"] == check && finding["found"].as_str().is_some_and(|found| found.contains(words))
            })
            .map(|finding| finding["severity"].as_str().expect("a severity"))
    }
}

async fn examine(url: &str, arguments: &[&str]) -> Report {
    let ended = process::run(&[&["doctor", "--database-url", url, "--json"], arguments].concat()).await;
    let report: Value =
        serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {} {}", ended.out, ended.err));
    let findings = report["findings"].as_array().expect("findings").clone();
    // Whatever is not well comes with what to do; the worst decides.
    let mut worst = 0;
    for finding in &findings {
        let severity = ["ok", "note", "warning", "critical"]
            .iter()
            .position(|name| finding["severity"] == *name)
            .expect("a severity");
        assert_eq!(
            severity > 0,
            finding["advice"].as_str().is_some_and(|advice| !advice.is_empty()) && severity > 0,
            "{finding}"
        );
        worst = worst.max(severity);
    }
    assert_eq!(report["status"], ["ok", "note", "warning", "critical"][worst]);
    assert_eq!(ended.code, Some([0, 0, 1, 2][worst]), "{report}");
    Report { code: ended.code, findings }
}

async fn run_sql(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect(sql);
}

#[tokio::test]
async fn a_well_kept_database_is_left_alone() {
    let url = postgres::new_database().await;
    let application = postgres::as_application(&url);
    let service = Service::serve(&["--database-url", &application, "--admin-token", ADMIN_TOKEN]).await;
    let report = examine(&postgres::as_role(&url, MONITOR), &[]).await;
    for check in [
        "version",
        "clock",
        "settings",
        "connections",
        "rights",
        "migrations",
        "partitions",
        "indexes",
        "transactions",
        "locks",
        "notifications",
        "replication",
        "history",
        "wraparound",
        "listen",
    ] {
        let of_check: Vec<&Value> = report.findings.iter().filter(|finding| finding["check"] == check).collect();
        assert!(!of_check.is_empty(), "{check}");
        // The tests' server may be an older one, and is no production server.
        let well = |finding: &Value| finding["severity"] == "ok" || finding["severity"] == "note";
        assert!(check == "version" || of_check.iter().all(|finding| well(finding)), "{of_check:?}");
    }
    assert_eq!(report.severity("rights", "deskfeed_app may do what the service needs"), Some("ok"));
    assert_eq!(report.severity("sight", ""), None);
    // Who may not see everything is told so.
    assert_eq!(examine(&application, &[]).await.severity("sight", "deskfeed_app sees"), Some("note"));
    let people = process::run(&["doctor", "--database-url", &application]).await;
    assert!(people.out.starts_with("deskfeed doctor: ") && people.out.contains("\nok       listen"), "{}", people.out);
    // A reader that goes away (`| head -1`) changes nothing.
    let mut unread = process::command(&["doctor", "--database-url", &application]);
    let mut unread = unread.spawn().expect("it runs");
    drop(unread.stdout.take());
    assert_eq!(unread.wait().await.expect("it ends").code(), people.code);
    service.terminate().await;
}

#[tokio::test]
async fn the_queries_of_the_dbas_document_are_open_to_monitors() {
    let url = postgres::new_database().await;
    let document = include_str!("../../docs/dba.md");
    let (_, chapter) = document.split_once("## Queries to watch").expect("the chapter");
    let (_, block) = chapter.split_once("```sql\n").expect("its queries");
    let (queries, _) = block.split_once("```").expect("their end");
    let queries: Vec<&str> = queries.split(";\n").filter(|query| !query.trim().is_empty()).collect();
    assert!(queries.len() > 5, "{queries:?}");
    let mut monitor = PgConnection::connect(&postgres::as_role(&url, MONITOR)).await.expect("it gets in");
    for query in queries {
        sqlx::raw_sql(AssertSqlSafe(query.to_owned())).execute(&mut monitor).await.expect(query);
    }
}

/// What is wrong, how it is mended, which check says so, in which words, and how bad it is.
type Ill = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// What may be wrong with a schema, with rights or with the history.
const ILLS: [Ill; 13] = [
    (
        "grant delete on events to deskfeed_app",
        "revoke delete on events from deskfeed_app",
        "rights",
        "may delete events",
        "warning",
    ),
    (
        "revoke execute on function append from deskfeed_app",
        "grant execute on function append to deskfeed_app",
        "rights",
        "lacks execute on append",
        "critical",
    ),
    (
        "grant execute on function next_history to deskfeed_app",
        "revoke execute on function next_history from deskfeed_app",
        "rights",
        "may execute next_history",
        "warning",
    ),
    (
        "revoke select on histories from deskfeed_app",
        "grant select on histories to deskfeed_app",
        "rights",
        "lacks select on histories",
        "critical",
    ),
    (
        "drop index sessions_by_status",
        "create index sessions_by_status on sessions (status, session_key)",
        "migrations",
        "index sessions_by_status is missing",
        "critical",
    ),
    (
        "alter table events disable trigger events_are_kept",
        "alter table events enable always trigger events_are_kept",
        "migrations",
        "trigger events.events_are_kept is not",
        "critical",
    ),
    ("create table mine ()", "drop table mine", "migrations", "table mine is not of the migrations", "warning"),
    (
        "update _sqlx_migrations set success = false where version = 1",
        "update _sqlx_migrations set success = true where version = 1",
        "migrations",
        "migration 1 is recorded differently",
        "critical",
    ),
    (
        "update _sqlx_migrations set version = 0 where version = 1",
        "update _sqlx_migrations set version = 1 where version = 0",
        "migrations",
        "migrations from 1 on are not applied",
        "critical",
    ),
    (
        "insert into _sqlx_migrations select 999, 'x', now(), true, checksum, 0 from _sqlx_migrations where version = 1",
        "select",
        "migrations",
        "up to 999, newer",
        "note",
    ),
    (
        "update store set oldest_program = 999",
        "delete from _sqlx_migrations where version = 999; update store set oldest_program = 1",
        "migrations",
        "cannot work with them",
        "critical",
    ),
    (
        "revoke select on _sqlx_migrations from deskfeed_monitor",
        "grant select on _sqlx_migrations to deskfeed_monitor",
        "migrations",
        "it cannot be looked at",
        "warning",
    ),
    (
        "update histories set timeline = timeline + 1",
        "update histories set timeline = timeline - 1",
        "history",
        "the next append begins a new one",
        "note",
    ),
];

/// These, and what may be wrong with a database's settings.
fn ills(database: &str) -> Vec<(String, String, &'static str, &'static str, &'static str)> {
    let settings = [
        (
            format!("alter database {database} set synchronous_commit = off"),
            format!("alter database {database} reset synchronous_commit"),
            "settings",
            "synchronous_commit=off is set for everybody",
            "critical",
        ),
        (
            format!("alter database {database} set default_transaction_read_only = on"),
            format!("begin read write; alter database {database} reset default_transaction_read_only; commit"),
            "settings",
            "default_transaction_read_only=on is set",
            "critical",
        ),
        (
            format!("alter database {database} set idle_session_timeout = 9000"),
            format!("alter database {database} reset idle_session_timeout"),
            "settings",
            "idle_session_timeout is set",
            "warning",
        ),
    ];
    let owned = |change: &str, back: &str| (change.to_owned(), back.to_owned());
    let ills = ILLS.iter().copied().chain(
        settings
            .iter()
            .map(|(change, back, check, words, severity)| (change.as_str(), back.as_str(), *check, *words, *severity)),
    );
    ills.map(|(change, back, check, words, severity)| {
        let (change, back) = owned(change, back);
        (change, back, check, words, severity)
    })
    .collect()
}

/// What is wrong with a schema or with rights shows, and is gone when it is mended.
#[tokio::test]
async fn what_is_wrong_in_a_database_is_found() {
    let url = postgres::new_database().await;
    let name = url::Url::parse(&url).expect("a URL").path()[1..].to_owned();
    let newest = deskfeed::store::schema::FILES.last().expect("files").0;
    for (change, back, check, words, severity) in ills(&name) {
        run_sql(&url, &change).await;
        let report = examine(&postgres::as_role(&url, MONITOR), &[]).await;
        assert_eq!(report.severity(check, words), Some(severity), "{change}: {:#?}", report.findings);
        run_sql(&url, &back).await;
    }
    let report = examine(&postgres::as_role(&url, MONITOR), &[]).await;
    assert!(report.severity("migrations", "all are applied").is_some() && newest > 0, "{:?}", report.findings);

    // The service runs as somebody who may do everything.
    let service = Service::serve(&["--database-url", &postgres::as_role(&url, OWNER)]).await;
    let report = examine(&postgres::as_role(&url, MONITOR), &[]).await;
    assert_eq!(
        report.severity("rights", "deskfeed_owner, the service's role, can do more than it needs: owns "),
        Some("warning")
    );
    service.terminate().await;
}

#[tokio::test]
async fn what_goes_on_too_long_is_found() {
    let url = postgres::new_database().await;
    let monitor = postgres::as_role(&url, MONITOR);
    let mut keeper = PgConnection::connect(&postgres::as_role(&url, OWNER)).await.expect("it gets in");
    sqlx::raw_sql("set application_name = 'keeper'; begin; lock table append_lock in exclusive mode")
        .execute(&mut keeper)
        .await
        .expect("the lock");
    let report = examine(&monitor, &["--transaction-seconds", "0"]).await;
    assert_eq!(
        report.severity("transactions", "(keeper, idle in transaction) has been in a transaction"),
        Some("warning")
    );
    assert!(report.severity("transactions", "none is older").is_none());
    assert_eq!(
        examine(&monitor, &["--transaction-seconds", "3600"])
            .await
            .severity("transactions", "none is older than 3600 s"),
        Some("ok")
    );

    let waiter_url = postgres::as_application(&url);
    let waiter = tokio::spawn(async move {
        let mut waiter = PgConnection::connect(&waiter_url).await.expect("it gets in");
        sqlx::raw_sql("set application_name = 'waiter'; select settle_append(1, 0)")
            .execute(&mut waiter)
            .await
            .map(drop)
    });
    let until = Instant::now() + PATIENCE;
    loop {
        let report = examine(&monitor, &[]).await;
        if report.severity("locks", "(waiter) waits for process") == Some("warning") {
            break;
        }
        assert!(Instant::now() < until, "{:?}", report.findings);
    }
    keeper.close().await.expect("it closes");
    waiter.await.expect("no panic").expect("its turn comes");
}

#[tokio::test]
async fn a_way_that_loses_notifications_is_found() {
    let url = postgres::new_database().await;
    let proxy = DbProxy::before(&postgres::as_role(&url, MONITOR)).await;
    assert_eq!(examine(&proxy.url, &[]).await.severity("listen", "a notification was heard"), Some("ok"));
    proxy.set(Mode::BlackholeListeners);
    assert_eq!(examine(&proxy.url, &[]).await.severity("listen", "a notification was not heard"), Some("critical"));
    proxy.set(Mode::Refuse);
    let report = examine(&proxy.url, &[]).await;
    assert_eq!((report.code, report.severity("connection", "cannot be reached")), (Some(2), Some("critical")));
}

/// Events of nobody's, as far as a version.
fn events_to(from: i64, to: i64) -> String {
    format!(
        "insert into events (version, created_at, session_key, feed_key, profile_key, author_key, message_seq, type, reason, message_type, content_type)
         select n, now(), 1, 1, 0, 0, 0, 0, 0, 0, 0 from generate_series({from}, {to}) n"
    )
}

#[tokio::test]
async fn partitions_that_run_out_are_found() {
    let url = postgres::database_in_partitions(100).await;
    let monitor = postgres::as_role(&url, MONITOR);
    for (insert, remain, severity) in
        [(events_to(1, 40), 260, "ok"), (events_to(41, 120), 180, "warning"), (events_to(121, 210), 90, "critical")]
    {
        run_sql(&url, &insert).await;
        let report = examine(&monitor, &[]).await;
        assert_eq!(
            report.severity("partitions", &format!("{remain} versions remain")),
            Some(severity),
            "{:?}",
            report.findings
        );
    }
    let owner = postgres::as_role(&url, OWNER);
    let made = process::run(&["retention", "--database-url", &owner, "ahead"]).await;
    assert_eq!((made.code, made.out.as_str()), (Some(0), "2 partitions made.\n"), "{}", made.err);
    assert_eq!(examine(&monitor, &[]).await.severity("partitions", "290 versions remain"), Some("ok"));
    let more = process::run(&["retention", "--database-url", &owner, "ahead", "--to", "1000"]).await;
    assert_eq!(more.out, "5 partitions made.\n", "{}", more.err);

    for (change, back, words, severity) in [
        (
            "alter table events detach partition events_301",
            "alter table events attach partition events_301 for values from (301) to (401)",
            "there is none for the versions 301 to 400",
            "critical",
        ),
        (
            "create table events_rest partition of events default",
            "drop table events_rest",
            "a default partition",
            "warning",
        ),
        (
            "update store set oldest_version = 101",
            "update store set oldest_version = 1",
            "events_1 holds nothing that is kept",
            "warning",
        ),
        (
            "alter table events detach partition events_901",
            "alter table events attach partition events_901 for values from (901) to (1001)",
            "detached, and still there: events_901",
            "note",
        ),
    ] {
        run_sql(&url, change).await;
        let report = examine(&monitor, &[]).await;
        assert_eq!(report.severity("partitions", words), Some(severity), "{change}: {:#?}", report.findings);
        run_sql(&url, back).await;
    }
    run_sql(&url, "create table events_rest partition of events for values from (1001) to (maxvalue)").await;
    assert_eq!(examine(&monitor, &[]).await.severity("partitions", "takes all versions to come"), Some("ok"));
}

/// A server of its own: what is wrong here is wrong for all its databases.
#[tokio::test]
async fn what_is_wrong_with_a_server_is_found() {
    let folder = postgres::private_folder("doctor");
    let start = || {
        let settings = [
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("autovacuum", "off"),
            ("max_connections", "40"),
            ("max_prepared_transactions", "2"),
            ("shared_buffers", "64MB"),
        ];
        PrivatePg::start(Options {
            folder: folder.clone(),
            search_path: std::env::var_os("PATH"),
            programs: std::env::var_os("DESKFEED_PG_BIN").map(Into::into),
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            stop_with_parent: true,
            ..Options::default()
        })
    };
    let pg = start().await.expect("a private PostgreSQL starts");
    let url = pg.url();
    postgres::make_schema(&url).await;

    let report = examine(&url, &[]).await;
    for (check, words, severity) in [
        ("settings", "fsync=off", "critical"),
        ("settings", "full_page_writes=off", "critical"),
        ("settings", "autovacuum=off", "warning"),
        ("settings", "idle_in_transaction_session_timeout=0", "note"),
        ("connections", "3 replicas need up to 59 connections, of 37", "warning"),
        ("replication", "no standby", "ok"),
        ("indexes", "all are valid", "ok"),
    ] {
        assert_eq!(report.severity(check, words), Some(severity), "{words}: {:#?}", report.findings);
    }
    assert!(
        examine(&url, &["--replicas", "1", "--db-readers", "2"])
            .await
            .severity("connections", "replicas need")
            .is_none()
    );

    // Indexes: one that was cut short, one that is mostly air.
    run_sql(
        &url,
        "update pg_index set indisvalid = false where indexrelid = 'tokens_revoked'::regclass;
         insert into feeds (kind, feed_id) values (1, 'ann');
         insert into acks select 2 * n, 2 * n, 1, 1 from generate_series(1, 500000) n;
         delete from acks where first_version % 100 <> 0",
    )
    .await;
    run_sql(&url, "vacuum analyze acks").await;
    let report = examine(&url, &[]).await;
    assert_eq!(report.severity("indexes", "tokens_revoked is invalid"), Some("warning"), "{:#?}", report.findings);
    assert_eq!(report.severity("indexes", "acks_pkey has "), Some("warning"), "{:#?}", report.findings);
    run_sql(&url, "reindex index acks_pkey").await;
    assert_eq!(examine(&url, &[]).await.severity("indexes", "acks_pkey"), None);

    // What nobody finishes, and whom nobody waits for any more.
    run_sql(&url, "begin; lock table append_lock; prepare transaction 'forgotten'").await;
    run_sql(&url, "select pg_create_physical_replication_slot('abandoned', true)").await;
    let report = examine(&url, &["--transaction-seconds", "0"]).await;
    assert_eq!(report.severity("transactions", "prepared transaction 'forgotten'"), Some("warning"));
    assert_eq!(report.severity("replication", "slot abandoned keeps"), Some("warning"));
    run_sql(&url, "rollback prepared 'forgotten'").await;
    run_sql(&url, "select pg_drop_replication_slot('abandoned')").await;

    // A standby that commits wait for, and that is not there.
    run_sql(&url, "alter system set synchronous_standby_names = 'nobody'").await;
    run_sql(&url, "select pg_reload_conf()").await;
    let until = Instant::now() + PATIENCE;
    while examine(&url, &[]).await.severity("replication", "synchronous_standby_names = nobody") != Some("critical") {
        assert!(Instant::now() < until, "the setting is not seen");
    }
    run_sql(&url, "alter system reset synchronous_standby_names").await;
    pg.stop(PATIENCE).await.expect("it stops");

    // The same server as a standby.
    std::fs::write(folder.join("pgdata/standby.signal"), "").expect("the file is written");
    let standby = start().await.expect("it starts as a standby");
    let report = examine(&standby.url(), &[]).await;
    assert_eq!(report.severity("version", "this server is a standby"), Some("critical"), "{:#?}", report.findings);
    assert_eq!(report.severity("listen", "was not heard"), Some("critical"));
    standby.stop(PATIENCE).await.expect("it stops");
}
