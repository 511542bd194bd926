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

INSERT INTO {schema}.version (version)
SELECT {version} WHERE NOT EXISTS (SELECT 1 FROM {schema}.version);
