-- What: conversations and who owns them.
-- Locks: SHARE ROW EXCLUSIVE on agents (its trigger), for a moment; the table is new.
-- Reversible: drop the table (only while no event refers to it).
-- Size: about 500 bytes per session, indexes included.
--
-- Narrower than squawk recommends, on purpose: keys as in 0002, the desk's own session type (32 bits in the
-- wire contract), and codes that a check constrains.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table sessions (
    opened_at        timestamptz not null,
    closed_at        timestamptz,
    session_key      bigint      not null generated always as identity,
    assigned_version bigint      not null default 0,
    last_op_version  bigint      not null default 0,
    revision         bigint      not null default 1,
    owner_key        integer,
    gateway_key      integer,
    session_type     integer     not null default 0,
    last_op_by       integer,
    last_op_to       integer,
    status           smallint    not null,
    last_op          smallint    not null default 0,
    session_id       text        not null,
    from_id          text        not null,
    from_name        text,
    from_image       text,
    constraint sessions_pkey primary key (session_key),
    constraint session_id_is_unique unique (session_id),
    -- No foreign keys to agents and gateways: append() has found both, and neither is ever deleted.
    -- Checking them took a fifth of the time of an open.
    constraint session_status_is_known check (status in (0, 1, 2)),
    constraint session_last_op_is_known check (last_op in (0, 1, 2, 3)),
    constraint open_session_has_an_owner check (status <> 1 or owner_key is not null),
    constraint queued_session_has_no_owner check (status <> 0 or owner_key is null),
    constraint closed_session_has_a_time check ((status = 2) = (closed_at is not null))
) with (fillfactor = 80);

-- Each serves one form of GET /session/list, newest first. The last one also serves the
-- queue, oldest first (session_key increases with the opening time: both are assigned
-- under append_lock).
create index sessions_by_owner on sessions (owner_key, status, session_key);
create index sessions_by_gateway on sessions (gateway_key, status, session_key);
create index sessions_by_status on sessions (status, session_key);

comment on table sessions is 'One conversation of a customer with the desk. Changed only under append_lock.';
comment on column sessions.opened_at is 'When it was opened.';
comment on column sessions.closed_at is 'When it was closed; null until then.';
comment on column sessions.session_key is 'Short key, used by events; increases with the opening time.';
comment on column sessions.assigned_version is 'Version of the AddSession that gave it to its present owner; 0 while it never had one.';
comment on column sessions.last_op_version is 'Version in the answer to the last close, release or transfer.';
comment on column sessions.revision is 'Incremented by every change of the columns that decide who may do what in it. An append states which revision it was decided on.';
comment on column sessions.owner_key is 'The agent who owns it; of a closed session, the last owner. Null while queued.';
comment on column sessions.gateway_key is 'The gateway that opened it; null when an admin did.';
comment on column sessions.session_type is 'The desk''s own classification, passed through.';
comment on column sessions.last_op_by is 'Caller of the last close, release or transfer (feed_key; 0 an admin): a repetition by the same caller gets the same answer.';
comment on column sessions.last_op_to is 'Target of the last transfer, or the owner before the last release: the queue does not assign it straight back to that agent.';
comment on column sessions.status is '0 queued, 1 open, 2 closed.';
comment on column sessions.last_op is '0 none, 1 close, 2 release, 3 transfer.';
comment on column sessions.session_id is 'The id clients use.';
comment on column sessions.from_id is 'The customer''s id at the gateway.';
comment on column sessions.from_name is 'The customer''s name; null when unknown.';
comment on column sessions.from_image is 'The customer''s image; null when unknown.';

-- Makes changes by hand as safe as the service's own: they take append_lock, and increment the revision if the
-- statement does not. append() already holds the lock and increments the revision itself.
create function take_append_lock() returns trigger
language plpgsql set search_path = public, pg_temp as $$
begin
    lock table append_lock in exclusive mode;
    return null;
end
$$;

comment on function take_append_lock() is 'Trigger function: takes append_lock, so that no append is decided on state that is about to change.';

create trigger sessions_change_under_append_lock
    before insert or update or delete or truncate on sessions
    for each statement execute function take_append_lock();

create trigger agents_change_under_append_lock
    before insert or update or delete or truncate on agents
    for each statement execute function take_append_lock();

create function raise_revision() returns trigger
language plpgsql set search_path = public, pg_temp as $$
begin
    new.revision := old.revision + 1;
    return new;
end
$$;

comment on function raise_revision() is 'Trigger function: increments a session''s revision.';

create trigger session_revision_rises
    before update on sessions
    for each row
    when (new.revision = old.revision
          and (new.status, new.owner_key, new.gateway_key, new.session_id, new.last_op, new.from_name, new.from_image)
              is distinct from
              (old.status, old.owner_key, old.gateway_key, old.session_id, old.last_op, old.from_name, old.from_image))
    execute function raise_revision();

revoke execute on function take_append_lock(), raise_revision() from public;
