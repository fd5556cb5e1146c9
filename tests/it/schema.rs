//! The schema, as the DBA has it.

use std::{collections::BTreeSet, fs, path::Path};

use deskfeed::store::{
    catalog,
    pool::{Db, Purpose},
    schema::{self, FILES, SchemaState},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{TestDesk, postgres};

#[test]
fn the_program_has_every_file_of_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let in_folder: BTreeSet<String> = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "sql"))
        .collect();
    let embedded: BTreeSet<String> = FILES.iter().map(|(number, name, _)| format!("{number:04}_{name}.sql")).collect();
    assert_eq!(in_folder, embedded);
    assert!(
        FILES.iter().map(|(number, ..)| *number).eq(1..=i64::try_from(FILES.len()).expect("few files")),
        "numbers without gaps"
    );
    for (number, _, sql) in FILES {
        assert!(!sql.contains('\r'), "migration {number}: line ends would change its checksum");
        for heading in ["-- What:", "-- Locks:", "-- Reversible:", "-- Size:"] {
            assert!(sql.contains(heading), "migration {number} says nothing about {heading}");
        }
    }
}

#[tokio::test]
async fn every_table_and_column_says_what_it_is() {
    let desk = TestDesk::start().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "select c.relname || coalesce('.' || a.attname, '')
         from pg_class c
         left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') and c.relname <> '_sqlx_migrations'
           and (obj_description(c.oid) is null or a.attnum is not null and col_description(c.oid, a.attnum) is null)",
    )
    .fetch_all(&mut desk.sql().await)
    .await
    .expect("the catalog");
    assert_eq!(silent, Vec::<String>::new());
}

#[tokio::test]
async fn the_catalog_file_says_what_the_migrations_make() {
    let desk = TestDesk::start().await;
    let made = catalog::read(&mut desk.sql().await).await.expect("the catalog");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/catalog.txt");
    if std::env::var_os("DESKFEED_WRITE_CATALOG").is_some() {
        fs::write(&path, &made).expect("the file is written");
    }
    let written = fs::read_to_string(&path).expect("the file");
    assert_eq!(
        written, made,
        "after a change to a migration: DESKFEED_WRITE_CATALOG=1 cargo test --test it -- catalog"
    );
}

/// What a statement locks of the tables that were there before it, as `feeds SHARE ROW EXCLUSIVE`; a
/// partition counts as the table.
async fn locks_of(connection: &mut PgConnection, sql: &'static str) -> Vec<String> {
    sqlx::raw_sql("begin").execute(&mut *connection).await.expect("a transaction begins");
    let before: Vec<String> =
        sqlx::query_scalar("select relname::text from pg_class where relnamespace = 'public'::regnamespace")
            .fetch_all(&mut *connection)
            .await
            .expect("the catalog");
    sqlx::raw_sql(sql).execute(&mut *connection).await.expect(sql);
    let locks = sqlx::query_scalar(
        "select distinct case when relispartition then 'events' else relname end
                || upper(regexp_replace(replace(mode, 'Lock', ''), '([A-Z])', ' \\1', 'g'))
         from pg_locks join pg_class c on c.oid = relation
         where pid = pg_backend_pid() and relnamespace = 'public'::regnamespace and relname = any ($1) and mode <> 'AccessShareLock'
           and relkind in ('r', 'p')
         order by 1",
    )
    .bind(before)
    .fetch_all(&mut *connection)
    .await
    .expect("the locks");
    sqlx::raw_sql("commit").execute(connection).await.expect("it is kept");
    locks
}

#[tokio::test]
async fn the_dbas_document_names_every_lock_of_a_migration() {
    let document = include_str!("../../docs/dba.md");
    let mut connection = PgConnection::connect(&postgres::empty_database().await).await.expect("a connection");
    for (number, name, sql) in FILES {
        let locks = locks_of(&mut connection, sql).await;
        let locks = if locks.is_empty() { "none".to_owned() } else { locks.join(", ") };
        let line = format!("| `{number:04}_{name}.sql` | {locks} |");
        assert!(document.lines().any(|written| written == line), "docs/dba.md, Migrations, wants this line: {line}");
    }
}

/// The same of what makes partitions and lets them go. (The locks of a partition that is detached while
/// others read are in no one transaction; `retention::what_was_interrupted_is_finished` looks at them.)
#[tokio::test]
async fn the_dbas_document_names_the_locks_of_partitions() {
    let document = include_str!("../../docs/dba.md");
    let mut connection = PgConnection::connect(&postgres::database_in_partitions(10).await).await.expect("it answers");
    let events = "insert into events (version, created_at, session_key, feed_key, profile_key, author_key, message_seq, type, reason, message_type, content_type)
                  select n, now(), 1, 1, 0, 0, 0, 0, 0, 0, 0 from generate_series(1, 25) n";
    connection.execute(events).await.expect("events");
    for (statement, sql) in [
        ("make_partitions_ahead()", "select make_partitions_ahead()"),
        ("keep_events_from(11)", "select keep_events_from(11)"),
        (
            "drop table` of what is detached",
            "alter table events detach partition events_1; commit; begin; drop table events_1",
        ),
    ] {
        let locks = locks_of(&mut connection, sql).await;
        let locks = if locks.is_empty() { "none".to_owned() } else { locks.join(", ") };
        let tick = if statement.contains('`') { "" } else { "`" };
        let line = format!("| `{statement}{tick} | {locks} |");
        assert!(document.contains(&line), "docs/dba.md, Partitions, wants this line: {line}");
    }
}

#[tokio::test]
async fn a_database_is_told_apart_by_what_is_recorded_in_it() {
    let url = postgres::empty_database().await;
    let db = Db::new(&url, 1).expect("a URL");
    let mut connection = db.connect(Purpose::Commands).await.expect("a connection");
    assert_eq!(schema::state(&mut connection).await.expect("a state"), SchemaState::Behind { next: 1 });
    schema::migrate(&mut connection).await.expect("the migrations apply");
    schema::migrate(&mut connection).await.expect("twice is the same as once");
    assert_eq!(schema::state(&mut connection).await.expect("a state"), SchemaState::Current);

    let last = FILES.last().expect("files").0;
    for (change, expected) in [
        (
            format!("update _sqlx_migrations set checksum = '\\x00' where version = {last}"),
            SchemaState::Different { number: last },
        ),
        (format!("delete from _sqlx_migrations where version = {last}"), SchemaState::Behind { next: last }),
        (format!("update store set oldest_program = {}", last + 9), SchemaState::Behind { next: last }),
        (
            format!("insert into _sqlx_migrations values ({}, 'newer', now(), true, '\\x00', 0)", last + 9),
            SchemaState::Ahead { newest: last + 9 },
        ),
    ] {
        connection.execute(AssertSqlSafe(change)).await.expect("the record is changed");
        assert_eq!(schema::state(&mut connection).await.expect("a state"), expected);
    }
}

#[tokio::test]
async fn history_cannot_be_changed_by_anybody() {
    let desk = TestDesk::start().await;
    let (_ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    web.send("s1", "for ever").await.ok();
    let mut connection = desk.sql().await;
    let superuser: bool = sqlx::query_scalar("select rolsuper from pg_roles where rolname = current_user")
        .fetch_one(&mut connection)
        .await
        .expect("a role");
    let mut settings = vec!["set session_replication_role = origin"];
    if superuser {
        settings.push("set session_replication_role = replica");
    }
    for setting in settings {
        if superuser {
            connection.execute(setting).await.expect("a superuser may");
        }
        for statement in [
            "update events set reason = 1",
            "update events set version = version + 1 where false",
            "delete from events",
            "truncate events",
            "delete from events_1",
            "truncate events_1",
            "update events_1 set reason = 1",
            "insert into events_1 select * from events on conflict (version) do update set reason = 1",
            "truncate events, sessions cascade",
            "insert into events select * from events on conflict (version) do update set reason = 1",
            "delete from messages",
            "update messages set seq = seq + 1",
            "update events set id_text = 'x', id = null where version = 3",
            "update messages set content = 'never said'",
            "update events set content = null where content is not null",
            "update events set content = 'https://erased.invalid/' where content is not null",
            "update erasures set messages = 0",
            "delete from erasures",
            "truncate erasures",
        ] {
            let refused = connection.execute(statement).await.expect_err(statement);
            assert!(refused.to_string().contains("is append-only"), "{statement}: {refused}");
        }
    }
    // Erasing content is what may be done; readers then see it blank, in its place.
    connection.execute("update messages set content = ''").await.expect("content may be erased");
    let history = web.get("/session/history?SessionId=s1").await.ok();
    assert_eq!(history[0]["Content"], "");
}

#[tokio::test]
async fn the_counter_of_open_sessions_is_what_a_count_gives() {
    let desk = TestDesk::start().await;
    let (ann, bob, web) = (desk.agent("ann").await, desk.agent("bob").await, desk.gateway("web").await);
    for n in 0..12 {
        web.open_to(&format!("s{n}"), if n % 3 == 0 { "bob" } else { "ann" }).await.ok();
    }
    ann.post("/session/transfer", json!({"SessionId": "s1", "ToNewId": "bob"})).await.ok();
    ann.post("/session/release", json!({"SessionId": "s2"})).await.ok();
    ann.post("/session/close", json!({"SessionId": "s4"})).await.ok();
    bob.post("/session/close", json!({"SessionId": "s0"})).await.ok();
    desk.admin.post("/session/close", json!({"SessionId": "s5"})).await.ok();
    let wrong: Vec<(i32, i32, i64)> = sqlx::query_as(
        "select feed_key, open_sessions, (select count(*) from sessions where owner_key = feed_key and status = 1) as counted
         from agents where open_sessions <> (select count(*) from sessions where owner_key = feed_key and status = 1)",
    )
    .fetch_all(&mut desk.sql().await)
    .await
    .expect("the agents");
    assert_eq!(wrong, []);
}
