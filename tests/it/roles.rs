//! The roles of `deploy/roles.sql`: each may do what it needs, and nothing else.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{
    TestDesk,
    postgres::{self, APPLICATION, ERASER, MONITOR, OWNER, PASSWORD, READONLY},
    process::{self, Service},
};

const ROLES: [&str; 4] = [APPLICATION, READONLY, MONITOR, ERASER];

/// PostgreSQL's word for "not yours".
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// All that the four may do to tables: privilege, columns (empty: all of them), tables.
const MAY: [(&str, &str, &str, &str); 27] = [
    (
        APPLICATION,
        "select",
        "",
        "_sqlx_migrations store histories feeds profiles agents gateways polls_seen tokens sessions events messages erasures acks",
    ),
    (APPLICATION, "insert", "", "polls_seen tokens acks"),
    (APPLICATION, "update", "revocations", "store"),
    (APPLICATION, "lock", "", "acks"),
    (APPLICATION, "update", "created_at", "feeds"),
    (APPLICATION, "update", "seen_at", "polls_seen"),
    (APPLICATION, "update", "last_used_at revocation", "tokens"),
    (APPLICATION, "update", "last_version", "acks"),
    (APPLICATION, "delete", "", "acks"),
    (APPLICATION, "for update", "", "store feeds polls_seen tokens acks"),
    (
        READONLY,
        "select",
        "",
        "_sqlx_migrations store histories settled_appends feeds profiles agents gateways polls_seen sessions events messages erasures acks",
    ),
    (READONLY, "select", "created_at expires_at last_used_at revocation token_id feed_key role", "tokens"),
    (MONITOR, "select", "", "_sqlx_migrations store histories settled_appends polls_seen"),
    (MONITOR, "select", "version created_at feed_key type", "events"),
    (MONITOR, "select", "opened_at closed_at session_key status", "sessions"),
    (MONITOR, "select", "feed_key open_sessions max_sessions status", "agents"),
    (ERASER, "select", "", "_sqlx_migrations erasures"),
    (ERASER, "select", "oldest_program", "store"),
    (ERASER, "select", "feed_key feed_id", "feeds"),
    (ERASER, "select", "session_key gateway_key session_id from_id", "sessions"),
    (ERASER, "select", "version session_key content_type", "erasable"),
    (ERASER, "update", "", "append_lock"),
    (ERASER, "lock", "", "append_lock"),
    (ERASER, "update", "from_name from_image", "sessions"),
    (ERASER, "update", "content", "erasable"),
    (ERASER, "for update", "", "sessions erasable"),
    (ERASER, "insert", "", "erasures"),
];

fn may(role: &str, verb: &str, table: &str, column: &str) -> bool {
    MAY.iter().any(|(its_role, its_verb, columns, tables)| {
        *its_role == role
            && *its_verb == verb
            && tables.split(' ').any(|named| named == table)
            && (columns.is_empty() || columns.split(' ').any(|named| named == column))
    })
}

/// A database as its DBA makes it, by the script alone.
async fn database() -> String {
    let url = postgres::database_of_roles().await;
    let owner = postgres::as_role(&url, OWNER);
    let migrated = process::run(&["migrate", "--database-url", &owner]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.err);
    url
}

async fn log_in(url: &str, role: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&postgres::as_role(url, role)).await.expect("the role gets in");
    // What a script sets for the role's own good must not hide what it may not do.
    sqlx::raw_sql("set default_transaction_read_only = off").execute(&mut connection).await.expect("it may");
    connection
}

/// Whether the role was kept from it. What goes through is taken back.
async fn is_refused(connection: &mut PgConnection, sql: &str) -> bool {
    // Some statements do not run in a transaction.
    let in_transaction = !sql.starts_with("create database") && !sql.starts_with("alter system");
    if in_transaction {
        sqlx::raw_sql("begin").execute(&mut *connection).await.expect("a transaction begins");
    }
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await;
    if in_transaction {
        sqlx::raw_sql("rollback").execute(&mut *connection).await.expect("it is taken back");
    }
    let code = done.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned()));
    code.as_deref() == Some(INSUFFICIENT_PRIVILEGE)
}

#[tokio::test]
async fn no_role_may_do_more_to_a_table_than_it_needs() {
    let url = database().await;
    let mut sql = PgConnection::connect(&url).await.expect("PostgreSQL answers");
    let columns: Vec<(String, String, bool)> = sqlx::query_as(
        "select c.relname::text, coalesce(a.attname::text, ''), coalesce(a.attidentity = 'a', false) from pg_class c
         left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')",
    )
    .fetch_all(&mut sql)
    .await
    .expect("the catalog");
    let tables: BTreeSet<&str> = columns.iter().map(|(table, ..)| table.as_str()).collect();
    assert!(tables.len() > 12, "{tables:?}");
    for (_, _, _, named) in MAY {
        for table in named.split(' ') {
            assert!(tables.contains(table), "{table} is not there");
        }
    }
    let mut tried = 0;
    for role in ROLES {
        let mut connection = log_in(&url, role).await;
        let mut wrong = Vec::new();
        for table in &tables {
            let mut statements = vec![
                ("select", "", format!("select * from {table} limit 0")),
                ("insert", "", format!("insert into {table} default values")),
                ("delete", "", format!("delete from {table} where false")),
                ("truncate", "", format!("truncate {table}")),
                ("for update", "", format!("select from {table} for update")),
                ("lock", "", format!("lock table {table} in exclusive mode")),
                (
                    "trigger",
                    "",
                    format!(
                        "create trigger mine after insert on {table} for each statement execute function refuse_change()"
                    ),
                ),
                ("references", "", format!("create table mine (version bigint references {table})")),
                ("alter", "", format!("alter table {table} add column mine int")),
                ("disable", "", format!("alter table {table} disable trigger all")),
                ("drop", "", format!("drop table {table}")),
                ("rule", "", format!("create rule mine as on delete to {table} do instead nothing")),
                ("comment", "", format!("comment on table {table} is 'mine'")),
                ("owner", "", format!("alter table {table} owner to {role}")),
            ];
            let is_view = ["messages", "erasable"].contains(table);
            statements.retain(|(verb, ..)| {
                !is_view
                    || !["truncate", "references", "alter", "disable", "drop", "comment", "owner", "lock", "trigger"]
                        .contains(verb)
            });
            for (named, column, always) in &columns {
                if named == table && !column.is_empty() {
                    statements.push(("select", column, format!("select {column} from {table} limit 0")));
                    // Nobody may change a column that the database makes.
                    if !always && (*table != "messages" || !["id", "version"].contains(&column.as_str())) {
                        statements.push(("update", column, format!("update {table} set {column} = null where false")));
                    }
                }
            }
            for (verb, column, statement) in statements {
                tried += 1;
                let expected = may(role, verb, table, column);
                let refused = is_refused(&mut connection, &statement).await;
                if expected == refused {
                    wrong.push(format!("{role} {}: {statement}", if refused { "may not" } else { "may" }));
                }
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
    }
    assert!(tried > 700, "{tried}");
    println!("{tried} statements tried");
}

#[tokio::test]
async fn no_role_may_do_what_is_the_owners_or_the_servers() {
    let url = database().await;
    let owner = log_in(&url, OWNER).await;
    for role in ROLES {
        let mut connection = log_in(&url, role).await;
        // Blanking is what the eraser is for; and the record of it says when and who by itself.
        let blanks = ["update erasable set content = ''"];
        let erasers = [
            "update erasable set content = '' where content = 'a'",
            "update erasable set content = '' returning content",
            "insert into erasures (erased_by) values ('somebody else')",
            "insert into erasures (erased_at) values ('2026-01-01')",
        ];
        for statement in if role == ERASER { &erasers[..] } else { &blanks[..] } {
            assert!(is_refused(&mut connection, statement).await, "{role}: {statement}");
        }
        for statement in [
            "create table mine ()",
            "create temporary table mine ()",
            "create schema mine",
            "create function mine() returns int language sql as 'select 1'",
            "create sequence mine",
            "create type mine as enum ('a')",
            "create index on events (created_at)",
            "drop function append",
            "alter function append security invoker",
            "alter function append set search_path = mine",
            "drop index events_by_feed",
            "alter table events detach partition events_1",
            "alter table events_1 disable trigger events_are_kept",
            "drop table events_1",
            "select from events_1",
            "select make_partitions(30000001, 30000002)",
            "select keep_events_from(10000001)",
            "select from sessions_in_need_of_events_before(10000001)",
            "create table mine partition of events for values from (30000001) to (30000002)",
            "drop sequence sessions_session_key_seq",
            "select setval('sessions_session_key_seq', 1)",
            "alter sequence sessions_session_key_seq restart",
            "select next_history(true)",
            "select current_timeline()",
            "select put_feed('mine', 1::smallint)",
            "select put_agent('mine', null, false, null, false, null, 50, true)",
            "select choose_agents('{null}')",
            "select refuse_event('mine')",
            "select from histories for update",
            "update messages set content = ''",
            "update events set content = ''",
            "update erasures set messages = 0",
            "insert into events select * from events on conflict (version) do update set content = ''",
            "set session_replication_role = replica",
            "set role deskfeed_owner",
            "create role mine",
            "alter role current_user superuser",
            "create database mine",
            "alter system set fsync = off",
            "copy (select 1) to program 'true'",
            "select pg_read_file('/etc/passwd')",
            "create extension dblink",
            "alter schema public rename to mine",
            "select pg_switch_wal()",
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'deskfeed_owner'",
        ] {
            assert!(is_refused(&mut connection, statement).await, "{role}: {statement}");
        }
    }
    owner.close().await.expect("it was left alone");
    // What the service may do with the owner's rights, it may do through these functions alone.
    for role in ROLES {
        let mut connection = log_in(&url, role).await;
        for statement in [
            "select make_partitions_ahead()",
            "select begin_history()",
            "select settle_append(1, 0)",
            "select put_gateway('web', null, false)",
            NOTHING_TO_APPEND,
        ] {
            let refused = is_refused(&mut connection, statement).await;
            assert_eq!(refused, role != APPLICATION, "{role}: {statement}");
        }
    }
}

const NOTHING_TO_APPEND: &str = "select append(gen_random_uuid(), 1, 0, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', null)";

#[tokio::test]
async fn functions_are_nobodys_but_whom_they_are_granted_to_and_find_what_they_name() {
    let url = database().await;
    let mut sql = PgConnection::connect(&url).await.expect("PostgreSQL answers");
    // (name, whether its search_path is set, who may execute it besides the owner)
    let functions: Vec<(String, bool, Vec<String>)> = sqlx::query_as(
        "select p.proname::text, coalesce(p.proconfig::text like '%search_path=%pg_temp%', false),
                array(select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
                      from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee <> p.proowner order by 1)
         from pg_proc p where p.pronamespace = 'public'::regnamespace order by 1",
    )
    .fetch_all(&mut sql)
    .await
    .expect("the catalog");
    let unpinned: Vec<&str> =
        functions.iter().filter(|(_, pinned, _)| !pinned).map(|(name, ..)| name.as_str()).collect();
    assert_eq!(unpinned, Vec::<&str>::new(), "whoever calls it decides what its names mean");
    let granted: Vec<(&str, String)> = functions
        .iter()
        .filter(|(.., grantees)| !grantees.is_empty())
        .map(|(name, _, grantees)| (name.as_str(), grantees.join(" ")))
        .collect();
    assert_eq!(
        granted,
        [
            ("append", APPLICATION),
            ("begin_history", APPLICATION),
            ("event_partitions", "deskfeed_app deskfeed_monitor"),
            ("made_message_id", "deskfeed_app deskfeed_readonly"),
            ("make_partitions_ahead", APPLICATION),
            ("put_gateway", APPLICATION),
            ("settle_append", APPLICATION),
        ]
        .map(|(name, roles)| (name, roles.to_owned()))
    );
    // What was granted by hand is taken back.
    let revoked = deskfeed::store::rights::GRANTS.lines().filter(|line| line.contains("revoke all on function "));
    for line in revoked {
        let (_, list) = line.split_once("revoke all on function ").expect("functions");
        let (list, _) = list.split_once(" from ").expect("a role");
        let named: BTreeSet<&str> = list.split(", ").collect();
        assert_eq!(named, functions.iter().map(|(name, ..)| name.as_str()).collect());
    }
}

#[tokio::test]
async fn the_script_can_be_run_at_any_time() {
    let superuser = postgres::empty_database().await;
    let passwords: Vec<String> =
        ["owner", "app", "readonly", "monitor", "eraser"].map(|name| format!("{name}_password={PASSWORD}")).to_vec();
    let mut script: Vec<&str> = passwords.iter().flat_map(|password| ["-v", password]).collect();
    script.extend(["-f", "deploy/roles.sql"]);
    let (ran, said) = postgres::run_psql(&superuser, &script, "").await;
    assert!(ran, "{said}");
    let owner = postgres::as_role(&superuser, OWNER);
    assert_eq!(process::run(&["migrate", "--database-url", &owner]).await.code, Some(0));
    // What was granted by hand is taken back; rights that were lost come back.
    let mut sql = PgConnection::connect(&superuser).await.expect("PostgreSQL answers");
    let by_hand = "grant all on events to deskfeed_app; grant create on schema public to deskfeed_readonly; \
                   revoke all on sessions from deskfeed_app; grant execute on function next_history to deskfeed_app; \
                   revoke execute on function settle_append from deskfeed_app; grant select (content) on events to deskfeed_monitor; \
                   grant temporary on database ";
    let name: String = sqlx::query_scalar("select current_database()::text").fetch_one(&mut sql).await.expect("a name");
    sqlx::raw_sql(AssertSqlSafe(format!("{by_hand} {name} to public")))
        .execute(&mut sql)
        .await
        .expect("a superuser may");
    let (ran, said) = postgres::run_psql(&superuser, &["-f", "deploy/roles.sql"], "").await;
    assert!(ran, "{said}");
    for (role, statement) in [
        (APPLICATION, "delete from events"),
        (APPLICATION, "select next_history(true)"),
        (READONLY, "create table mine ()"),
        (MONITOR, "select content from events"),
        (APPLICATION, "create temporary table mine ()"),
    ] {
        assert!(is_refused(&mut log_in(&superuser, role).await, statement).await, "{role}: {statement}");
    }
    for statement in ["select from sessions", "select settle_append(1, 0)"] {
        assert!(!is_refused(&mut log_in(&superuser, APPLICATION).await, statement).await, "{statement}");
    }
    // Nobody else gets in.
    let stranger = format!("stranger_{}", std::process::id());
    let made = format!("create role {stranger} login password '{PASSWORD}'");
    sqlx::raw_sql(AssertSqlSafe(made)).execute(&mut sql).await.expect("a superuser may");
    let refused =
        PgConnection::connect(&postgres::as_role(&superuser, &stranger)).await.expect_err("it has no business here");
    let code = refused.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned);
    assert_eq!(code.as_deref(), Some(INSUFFICIENT_PRIVILEGE));
    sqlx::raw_sql(AssertSqlSafe(format!("drop role {stranger}"))).execute(&mut sql).await.expect("it goes again");
}

#[tokio::test]
async fn the_tests_service_is_the_application() {
    let desk = TestDesk::start().await;
    let roles: Vec<String> = sqlx::query_scalar(
        "select distinct usename::text from pg_stat_activity where application_name like 'deskfeed/%' and datname = current_database()",
    )
    .fetch_all(&mut desk.sql().await)
    .await
    .expect("the activity");
    assert_eq!(roles, [APPLICATION]);
}

/// What a service says when it starts as this role.
async fn says(url: &str) -> String {
    let service = Service::serve(&["--database-url", url]).await;
    let err = service.err.clone();
    service.terminate().await;
    err.text()
}

#[tokio::test]
async fn serve_says_when_its_role_may_do_more_or_less_than_it_needs() {
    const MORE: &str = "can do more than the service needs";
    const LESS: &str = "lacks rights that the service needs";
    let url = database().await;
    let quiet = says(&postgres::as_application(&url)).await;
    assert!(!quiet.contains(MORE) && !quiet.contains(LESS), "{quiet}");
    let owner = says(&postgres::as_role(&url, OWNER)).await;
    for word in [MORE, "deploy/roles.sql", "deskfeed_owner", "owns ", "events, ", "may create tables in schema public"]
    {
        assert!(owner.contains(word), "{word}: {owner}");
    }
    let mut sql = PgConnection::connect(&url).await.expect("PostgreSQL answers");
    let superuser: bool = sqlx::query_scalar("select rolsuper from pg_roles where rolname = current_user")
        .fetch_one(&mut sql)
        .await
        .expect("a role");
    if superuser {
        assert!(says(&url).await.contains("is a superuser"));
    }
    // A role of the DBA's own, a member of the application's.
    let member = format!("member_{}", std::process::id());
    let made = format!(
        "create role {member} login password '{PASSWORD}'; grant deskfeed_app to {member}; grant delete, truncate on events to {member};
         grant delete on sessions to {member}; grant execute on function put_agent to {member}; revoke execute on function settle_append from deskfeed_app"
    );
    sqlx::raw_sql(AssertSqlSafe(made)).execute(&mut sql).await.expect("the DBA may");
    let said = says(&postgres::as_role(&url, &member)).await;
    for word in [
        MORE,
        "may delete events; may truncate events; may execute put_agent; may delete sessions",
        LESS,
        "execute on settle_append",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let gone = format!("drop owned by {member}; drop role {member}");
    sqlx::raw_sql(AssertSqlSafe(gone)).execute(&mut sql).await.expect("it goes again");
}
