-- What: the record of what was erased, and for whom; the view to erase through; content becomes blank only.
-- Locks: SHARE ROW EXCLUSIVE on events (its trigger), for a moment; the table is new.
-- Reversible: drop the trigger and the view, and the table (only while nothing was erased: nothing else knows what was).
-- Size: about 150 bytes for each session that is erased, and again for each time, indexes included.
--
-- Narrower than squawk likes, on purpose: a transaction blanks some hundreds, and codes that a check names.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table erasures (
    erasure         bigint      not null,
    erased_at       timestamptz not null default clock_timestamp(),
    session_key     bigint      not null,
    through_version bigint      not null,
    messages        integer     not null,
    asked           smallint    not null,
    asked_id        text        not null,
    erased_by       text        not null default session_user,
    -- No foreign key: the record outlives the session.
    constraint erasures_pkey primary key (erasure),
    constraint erasure_is_positive check (erasure >= 1),
    constraint erased_messages_are_counted check (messages >= 0 and through_version >= 0),
    constraint erasure_is_asked_for_a_session_or_a_customer check (asked in (1, 2))
);

-- How far a session is erased.
create index erasures_by_session on erasures (session_key, through_version);

comment on table erasures is 'Who has erased what, a row for each session and transaction, written by the transaction that did it. Append-only, enforced for everyone. Holds no content, and nothing of a person but ids.';
comment on column erasures.erasure is 'The row''s number: 1, 2, 3 and so on, given under append_lock. A replica that knows of a lower one forgets what it remembers of the sessions since.';
comment on column erasures.erased_at is 'When (the database''s clock).';
comment on column erasures.session_key is 'The session whose messages are blank now, and whose customer has no name and no image any more.';
comment on column erasures.through_version is 'All its messages up to this version are blank; 0 when it had none.';
comment on column erasures.messages is 'How many of them this transaction blanked; 0 when they were blank already.';
comment on column erasures.asked is 'What the erasure was asked for: 1 a session, 2 a customer.';
comment on column erasures.asked_id is 'Its id: sessions.session_id or sessions.from_id.';
comment on column erasures.erased_by is 'The database role that logged in to do it.';

create trigger erasures_are_kept
    before update or delete or truncate on erasures
    for each statement execute function refuse_change();

-- ALWAYS: also in sessions that run with session_replication_role = replica.
alter table erasures enable always trigger erasures_are_kept;

-- Which messages there are, for those who must not read them. By the versions of their events, which only
-- ever rise, also when the older ones are not kept any more.
create view erasable as
select version, session_key, content_type, content
from events
where content is not null;

comment on view erasable is 'The events that hold content, by version: what an erasure changes content through.';
comment on column erasable.version is 'The event''s version, also of a message that nobody was told of when it came.';
comment on column erasable.session_key is 'The session.';
comment on column erasable.content_type is '0 text, 1 URL of an image.';
comment on column erasable.content is 'The text, or the URL of the image.';

-- So far content could be changed at will. What erases must not be able to put words into mouths.
create trigger content_becomes_blank_only
    before update of content on events
    for each row
    when (new.content is distinct from case old.content_type when 1 then 'https://erased.invalid/' else '' end)
    execute function refuse_change();

alter table events enable always trigger content_becomes_blank_only;
