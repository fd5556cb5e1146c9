-- What: access tokens, stored as hashes only.
-- Locks: SHARE ROW EXCLUSIVE on feeds (its foreign key), for a moment; the table is new.
-- Reversible: drop the table; every client loses its access.
-- Size: one row per token ever made (about 200 bytes with its indexes).
--
-- Narrower than squawk likes, on purpose: keys as in 0002, and a role is one of three.
-- squawk-ignore-file prefer-bigint-over-int, prefer-bigint-over-smallint

set local lock_timeout = '250ms';
set local statement_timeout = '5s';

create table tokens (
    created_at   timestamptz not null default now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revocation   bigint,
    token_id     uuid        not null,
    feed_key     integer,
    role         smallint    not null,
    token_hash   bytea       not null,
    constraint tokens_pkey primary key (token_id),
    constraint token_hash_is_unique unique (token_hash),
    constraint token_of_a_feed foreign key (feed_key) references feeds (feed_key),
    constraint token_role_is_known check (role in (1, 2, 3)),
    constraint token_of_agent_or_gateway_has_a_feed check ((role = 3) = (feed_key is null)),
    constraint token_hash_is_sha256 check (length(token_hash) = 32)
) with (fillfactor = 70);

create index tokens_revoked on tokens (revocation) where revocation is not null;

comment on table tokens is 'Access tokens. The secret itself is never stored.';
comment on column tokens.created_at is 'When it was made.';
comment on column tokens.expires_at is 'Refused from then on; null: never.';
comment on column tokens.last_used_at is 'Last use, to within a minute or two; null: never used.';
comment on column tokens.revocation is 'The value of store.revocations that revoking it took; null: not revoked.';
comment on column tokens.token_id is 'Public name of the token, for listing and revoking.';
comment on column tokens.feed_key is 'Whose feed it reads and in whose name it acts; null for an admin.';
comment on column tokens.role is '1 agent, 2 gateway, 3 admin.';
comment on column tokens.token_hash is 'SHA-256 of the secret (which has 256 random bits, so no slow hash is needed).';
