-- What: what was said. Content lives here and nowhere else, so that it can be erased
--       without touching an event.
-- Locks: none that matter; the table is new.
-- Reversible: drop the table (only while no event refers to it).
-- Size: about 450 bytes per message of 300 bytes, indexes included.

set local lock_timeout = '250ms';

create table messages (
    session_key  bigint      not null,
    created_at   timestamptz not null,
    version      bigint      not null default 0,
    seq          integer     not null,
    author_key   integer     not null,
    type         smallint    not null,
    content_type smallint    not null,
    id           uuid,
    id_text      text,
    content      text        not null,
    -- No foreign key to sessions: it would be checked for each row of each append,
    -- and appends find the session in the same transaction anyway.
    constraint messages_pkey primary key (session_key, seq),
    constraint message_has_one_id check ((id is null) <> (id_text is null)),
    constraint message_type_is_known check (type in (0, 1)),
    constraint message_content_type_is_known check (content_type in (0, 1))
);

-- Most ids are UUIDs: 16 bytes instead of 37, in the row and in the index.
create unique index message_id_is_unique on messages (id) where id is not null;
create unique index message_id_text_is_unique on messages (id_text) where id_text is not null;

-- Insert-only: vacuum early and freeze at once, so that the visibility map is
-- fresh and no wraparound vacuum ever has the whole table to read.
alter table messages set (
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_freeze_min_age = 0
);

comment on table messages is 'Messages, numbered within their session. Content may be erased; nothing else ever changes.';
comment on column messages.session_key is 'The session.';
comment on column messages.created_at is 'When the append that brought it was made (the database''s clock).';
comment on column messages.version is 'Version of the Message event in the owner''s feed (an agent''s message has another event, version + 1, in the gateway''s feed); 0 when it came while the session was queued.';
comment on column messages.seq is 'Number within the session: 1, 2, 3 and so on without gaps.';
comment on column messages.author_key is 'Feed of the gateway or agent that sent it.';
comment on column messages.type is '0 received from the customer, 1 sent by an agent.';
comment on column messages.content_type is '0 text, 1 URL of an image.';
comment on column messages.id is 'The message''s Id when it is a UUID in its usual lower-case form, else null.';
comment on column messages.id_text is 'The message''s Id in any other form, else null.';
comment on column messages.content is 'The text, or the URL of the image.';

create function refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception '% of table % is refused: it is append-only', tg_op, tg_table_name
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'Events and messages are history. To erase a message''s content, update messages.content.';
end
$$;

comment on function refuse_change() is 'Trigger function: refuses the statement, whoever asks.';

create trigger messages_are_kept
    before delete or truncate on messages
    for each statement execute function refuse_change();

create trigger messages_change_in_content_only
    before update of session_key, created_at, version, seq, author_key, type, content_type, id, id_text on messages
    for each statement execute function refuse_change();

-- ALWAYS: also in sessions that run with session_replication_role = replica.
alter table messages enable always trigger messages_are_kept;
alter table messages enable always trigger messages_change_in_content_only;
