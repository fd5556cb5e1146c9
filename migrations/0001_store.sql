-- What: the row that names this store, and the table whose lock puts appends in order.
-- Locks: none that matter; both tables are new.
-- Reversible: drop the two tables (only while the store is empty).
-- Size: one row and no row.

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table store (
    history         uuid    not null default gen_random_uuid(),
    oldest_version  bigint  not null default 1,
    revocations     bigint  not null default 0,
    oldest_program  bigint  not null default 1,
    partition_width bigint  not null default 10000000,
    partitions_end  bigint  not null default 1,
    only_row        boolean not null default true,
    constraint store_has_one_row primary key (only_row),
    constraint store_has_only_this_row check (only_row),
    constraint oldest_version_is_positive check (oldest_version >= 1),
    constraint partition_width_is_at_least_10 check (partition_width >= 10)
);

comment on table store is 'One row of facts about the whole store.';
comment on column store.history is 'Random name of this history. Part of Feed-Epoch, together with the cluster''s system identifier and timeline. Give it a new value (update store set history = gen_random_uuid()) after restoring a logical dump.';
comment on column store.oldest_version is 'Oldest event version still kept; a reader behind it is answered 41000. Moved by keep_events_from().';
comment on column store.revocations is 'Counts token revocations, so that every replica sees cheaply that there is a new one.';
comment on column store.oldest_program is 'Newest migration that a program must know to work on this schema; older programs are refused. Raised by a migration that takes away what they need.';
comment on column store.partition_width is 'Versions in each partition of events that is made from now on. The owner may change it at any time.';
comment on column store.partitions_end is 'First version that no partition of events has room for; kept by make_partitions().';
comment on column store.only_row is 'Always true: keeps the table at one row.';

insert into store default values;

-- An append holds EXCLUSIVE on this empty table until its commit, so versions are
-- given in commit order. A table lock and not a counter row: a counter row leaves a
-- dead row version at each commit, which a long snapshot (pg_dump) keeps from being
-- pruned. Not an advisory lock: any role may take one of those.
create table append_lock ();

comment on table append_lock is 'Always empty. Whoever appends events holds EXCLUSIVE on it until commit; readers never touch it.';
