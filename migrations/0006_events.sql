-- What: the events of all feeds, in one order.
-- Locks: none that matter; the table is new.
-- Reversible: no; this is the history.
-- Size: about 125 bytes per event, indexes included.

set local lock_timeout = '250ms';

create table events (
    version     bigint      not null,
    created_at  timestamptz not null,
    session_key bigint      not null,
    feed_key    integer     not null,
    message_seq integer     not null,
    profile_key integer     not null,
    type        smallint    not null,
    reason      smallint    not null,
    -- No foreign keys: each would be checked for each row of each append. The
    -- appending transaction has read what it refers to, and nothing is deleted.
    constraint events_pkey primary key (version),
    constraint event_version_is_positive check (version >= 1),
    constraint event_type_is_known check (type in (0, 1, 2)),
    constraint event_reason_is_known check (reason in (0, 1, 2, 3))
);

-- Every read of a feed is a scan of one to three ranges of this index, one for
-- each type, merged. (feed_key, version) would serve all types a little faster,
-- but make a rare type scan its whole feed; both would cost every append twice.
create index events_by_feed on events (feed_key, type, version);

-- Finds the AddSession that a message's Id acknowledges. Small: one in ten events.
create index events_adding_a_session on events (session_key, message_seq) where type = 0;

alter table events set (
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_freeze_min_age = 0
);

comment on table events is 'What happened on each feed. Append-only, enforced for everyone.';
comment on column events.version is 'The event''s number: dense (1, 2, 3 and so on), given under append_lock in commit order.';
comment on column events.created_at is 'When it was appended (the database''s clock); never decreases with the version.';
comment on column events.session_key is 'The session it is about.';
comment on column events.feed_key is 'The feed it belongs to.';
comment on column events.message_seq is 'Message: the message''s number in its session. AddSession: the last message that came with it (at most 20 are shown), 0 for none. DelSession: 0.';
comment on column events.profile_key is 'The agent it tells of, as the agent was then; 0 for none.';
comment on column events.type is '0 AddSession, 1 Message, 2 DelSession.';
comment on column events.reason is 'Of a DelSession: 1 closed, 2 transferred, 3 released. Else 0.';

create trigger events_are_append_only
    before update or delete or truncate on events
    for each statement execute function refuse_change();

-- ALWAYS: also in sessions that run with session_replication_role = replica.
alter table events enable always trigger events_are_append_only;
