-- What: the row that names this store, the list of its histories, and the table whose lock orders appends.
-- Locks: none that matter; all tables are new.
-- Reversible: drop the tables (only while the store is empty).
-- Size: one row in store, one row in histories per failover or restore, none in append_lock.
--
-- Narrower than squawk recommends, on purpose: the number of failovers, and PostgreSQL's own type of a timeline.
-- squawk-ignore-file prefer-bigint-over-int

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

-- A promoted standby or a restored copy holds an exact prefix of an earlier history and continues it
-- with versions of its own. Each continuation is a row, so that a reader that names an earlier history
-- can be told whether everything it has read is part of the present one.
create table histories (
    began_at          timestamptz not null default clock_timestamp(),
    first_version     bigint      not null,
    system_identifier bigint      not null,
    ordinal           integer     not null,
    timeline          integer     not null,
    name              uuid        not null default gen_random_uuid(),
    constraint histories_pkey primary key (ordinal),
    constraint history_name_is_unique unique (name),
    constraint history_begins_at_a_version check (first_version >= 1)
);

comment on table histories is 'The histories of this store. A new one begins with the first append after a failover or a restore, or by hand (deskfeed epoch renew).';
comment on column histories.began_at is 'When it began (the database''s clock).';
comment on column histories.first_version is 'Its first own version: everything below is shared with the previous history.';
comment on column histories.system_identifier is 'The cluster that it began on (pg_control_system()).';
comment on column histories.ordinal is '1, 2, 3 and so on.';
comment on column histories.timeline is 'The timeline of the cluster when it began.';
comment on column histories.name is 'Random name; clients receive it as Feed-Epoch.';

create table store (
    history         uuid    not null,
    oldest_version  bigint  not null default 1,
    revocations     bigint  not null default 0,
    oldest_program  bigint  not null default 1,
    partition_width bigint  not null default 10000000,
    partitions_end  bigint  not null default 1,
    only_row        boolean not null default true,
    constraint store_has_a_history foreign key (history) references histories (name),
    constraint store_has_one_row primary key (only_row),
    constraint store_has_only_this_row check (only_row),
    constraint oldest_version_is_positive check (oldest_version >= 1),
    constraint partition_width_is_at_least_10 check (partition_width >= 10)
);

comment on table store is 'One row of facts about the whole store.';
comment on column store.history is 'Name of the present history: the newest row of histories. Set by next_history().';
comment on column store.oldest_version is 'Oldest event version that is kept; a reader behind it gets 41000. Moved by keep_events_from().';
comment on column store.revocations is 'Number of token revocations: a cheap way for every replica to notice a new one.';
comment on column store.oldest_program is 'Newest migration that a program must know to work on this schema; older programs are refused. Raised by a migration that removes what they need.';
comment on column store.partition_width is 'Versions per partition of events, for partitions created from now on. The owner may change it at any time.';
comment on column store.partitions_end is 'First version beyond the last partition of events; maintained by make_partitions().';
comment on column store.only_row is 'Always true: limits the table to one row.';

-- The timeline that the server currently writes to. Fails on a standby.
create function current_timeline() returns integer
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
$$;

comment on function current_timeline() is 'The timeline that the server currently writes to.';

insert into histories (first_version, system_identifier, ordinal, timeline)
select 1, system_identifier, 1, current_timeline() from pg_control_system();

insert into store (history) select name from histories;

-- An append holds EXCLUSIVE on this empty table until its commit, so versions are
-- assigned in commit order. A table lock and not a counter row: a counter row leaves a
-- dead tuple at each commit, which cannot be pruned while a long snapshot (pg_dump)
-- is open. Not an advisory lock: any role may take one.
create table append_lock ();

comment on table append_lock is 'Always empty. An append holds EXCLUSIVE on it until its commit; readers never touch it.';

-- An append whose commit was not answered is looked up by its evidence, a random number that only
-- that append carries. Found or not, its outcome is recorded here. An append whose evidence is listed
-- is refused, so one that was taken for lost and arrives late does nothing.
create table settled_appends (
    evidence   bigint      not null,
    settled_at timestamptz not null default clock_timestamp(),
    version    bigint,
    constraint settled_appends_pkey primary key (evidence)
);

comment on table settled_appends is 'Appends whose commit was not answered, and their outcome. Each new row removes those older than a week.';
comment on column settled_appends.evidence is 'The random number of the append (events.append of its first event).';
comment on column settled_appends.settled_at is 'When it was settled (the database''s clock).';
comment on column settled_appends.version is 'Its first version; null if it was not committed and never will be.';
