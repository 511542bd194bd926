-- Towline's control tables. {schema} is `target.schema` of the pipeline file; every statement may be repeated.

CREATE SCHEMA IF NOT EXISTS {schema};

CREATE TABLE IF NOT EXISTS {schema}.version (
    version int NOT NULL
);

-- Up to where a pipeline's source has been applied, and which source that is.
CREATE TABLE IF NOT EXISTS {schema}.checkpoint (
    pipeline          text PRIMARY KEY,
    position          pg_lsn NOT NULL,
    epoch             bigint NOT NULL DEFAULT 0,
    commit_time       timestamptz,
    system_identifier text NOT NULL,
    timeline          int NOT NULL,
    source_database   text NOT NULL,
    slot              text NOT NULL,
    plugin            text NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- publication: the OID of the one that the slot can read. ahead: a position of the source that the target may hold rows
-- of, read again from its tables, though the log has not come there.
ALTER TABLE {schema}.checkpoint
    ADD COLUMN IF NOT EXISTS publication bigint,
    ADD COLUMN IF NOT EXISTS ahead       pg_lsn NOT NULL DEFAULT '0/0';

-- How far a route's snapshot is. cursor: the source key, as text, up to which rows were copied.
CREATE TABLE IF NOT EXISTS {schema}.route_state (
    pipeline   text,
    route      text,
    state      text NOT NULL CHECK (state IN ('pending', 'copying', 'streaming')),
    cursor     text[],
    copied     bigint NOT NULL DEFAULT 0,
    estimate   bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, route)
);

-- sweep: rows of the target that the source does not have are to be removed once the route has been copied.
ALTER TABLE {schema}.route_state ADD COLUMN IF NOT EXISTS sweep boolean NOT NULL DEFAULT false;

-- What became of every row, by route and hour.
CREATE TABLE IF NOT EXISTS {schema}.ledger (
    pipeline      text,
    route         text,
    hour          timestamptz,
    from_position pg_lsn NOT NULL,
    to_position   pg_lsn NOT NULL,
    seen          bigint NOT NULL DEFAULT 0,
    upserted      bigint NOT NULL DEFAULT 0,
    deleted       bigint NOT NULL DEFAULT 0,
    superseded    bigint NOT NULL DEFAULT 0,
    filtered      bigint NOT NULL DEFAULT 0,
    quarantined   bigint NOT NULL DEFAULT 0,
    applied_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, route, hour),
    CHECK (seen = upserted + deleted + superseded + filtered + quarantined)
);

-- Sums over source keys, modulo 2^64 (key_sum.py says of what; key_form: in which form the keys were). Of the changes
-- in the range: keys, key_sum, operation_sum; of all keys that the source has at to_position: total_keys, total_sum.
-- What a route's running sum is at the checkpoint is in route_state; it counts while the route streams.
ALTER TABLE {schema}.ledger
    ADD COLUMN IF NOT EXISTS key_form      text,
    ADD COLUMN IF NOT EXISTS keys          bigint,
    ADD COLUMN IF NOT EXISTS key_sum       numeric(20),
    ADD COLUMN IF NOT EXISTS operation_sum numeric(20),
    ADD COLUMN IF NOT EXISTS total_keys    bigint,
    ADD COLUMN IF NOT EXISTS total_sum     numeric(20);

ALTER TABLE {schema}.route_state
    ADD COLUMN IF NOT EXISTS key_form   text,
    ADD COLUMN IF NOT EXISTS total_keys bigint,
    ADD COLUMN IF NOT EXISTS total_sum  numeric(20);

-- Routes whose source keys the daemon is asked to count. position: null, until it has; then the rest is what it found.
-- anew: the running sum is to become what is counted; the daemon deletes the row when it has.
CREATE TABLE IF NOT EXISTS {schema}.recount (
    pipeline     text,
    route        text,
    anew         boolean NOT NULL DEFAULT false,
    requested_at timestamptz NOT NULL DEFAULT now(),
    position     pg_lsn,
    keys         bigint,
    key_sum      numeric(20),
    total_keys   bigint,
    total_sum    numeric(20),
    PRIMARY KEY (pipeline, route)
);

CREATE INDEX IF NOT EXISTS recount_open ON {schema}.recount (pipeline) WHERE position IS NULL;

-- Changes that the target refused, of routes with on_error: quarantine. `id` gives the order of a key's changes.
-- key, row: by source column, the source's text. They are JSON in ASCII, and not jsonb, so that a database in any
-- encoding holds them. Columns of `row` that have no value there are listed: not_sent (unchanged TOAST), masked
-- (sensitive), unreadable (this server cannot receive them). behind: what the target has of this key is older.
CREATE TABLE IF NOT EXISTS {schema}.quarantine (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline    text NOT NULL,
    route       text NOT NULL,
    key         text NOT NULL,
    position    pg_lsn NOT NULL,
    ordinal     bigint NOT NULL,
    commit_time timestamptz,
    xid         bigint,
    operation   text NOT NULL CHECK (operation IN ('insert', 'update', 'delete', 'snapshot')),
    "row"       json,
    not_sent    text[] NOT NULL DEFAULT ARRAY[]::text[],
    masked      text[] NOT NULL DEFAULT ARRAY[]::text[],
    unreadable  text[] NOT NULL DEFAULT ARRAY[]::text[],
    sqlstate    text NOT NULL,
    message     text NOT NULL,
    attempts    int NOT NULL DEFAULT 1,
    edits       json,
    state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'retried', 'superseded', 'discarded')),
    behind      boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolved_by text,
    reason      text
);

CREATE INDEX IF NOT EXISTS quarantine_behind ON {schema}.quarantine (pipeline, route, hashtextextended(key, 0))
    WHERE behind;

CREATE INDEX IF NOT EXISTS quarantine_open ON {schema}.quarantine (pipeline, route) WHERE state = 'open';

-- The source table of each route as it was taken in last: a later look is compared with it. table: a description, JSON
-- in ASCII. columns: those that travel. since: by column, a position before which the log's values are not its own.
-- accepted: `apply` was run since something changed that had halted the pipeline.
CREATE TABLE IF NOT EXISTS {schema}.source_table (
    pipeline   text,
    route      text,
    "table"    json NOT NULL,
    columns    text[] NOT NULL,
    position   pg_lsn NOT NULL,
    since      json NOT NULL,
    accepted   boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, route)
);

-- published: how the publication had the table, see published.py; null: not known.
ALTER TABLE {schema}.source_table ADD COLUMN IF NOT EXISTS published text;

-- How often `apply` was run: a daemon that is running looks at it.
CREATE TABLE IF NOT EXISTS {schema}.revision (
    pipeline   text PRIMARY KEY,
    number     bigint NOT NULL,
    applied_at timestamptz NOT NULL
);

INSERT INTO {schema}.version (version)
SELECT {version} WHERE NOT EXISTS (SELECT 1 FROM {schema}.version);

-- What an earlier version of the control tables lacks was made above.
UPDATE {schema}.version SET version = {version} WHERE version < {version};
