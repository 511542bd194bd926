-- Reading a backlog through a copy of the slot. Run with pg_catalog alone on the search_path; for PostgreSQL 13 to 18.

-- name: now
-- Where the log ends as far as it is flushed; on a standby nothing is read this way.
SELECT
  pg_is_in_recovery(),
  CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') END::bigint
;

-- name: session
-- Of whom asks: the process, and when it was started (microseconds).
SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity WHERE pid = pg_backend_pid()
;

-- name: end_walsender
SELECT count(pg_terminate_backend(s.active_pid))
FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
WHERE s.slot_name = %(slot)s AND a.application_name = current_setting('application_name')
;

-- name: standbys_first
-- Whether a walsender would send of a slot for failover only what named standbys have (from version 17 on).
SELECT coalesce(current_setting('synchronized_standby_slots', true), '') <> ''
;

-- name: idle_slots_end
-- From version 18 on.
SELECT coalesce(current_setting('idle_replication_slot_timeout', true), '0') <> '0'
;

-- name: copy
SELECT pg_copy_logical_replication_slot(%(slot)s, %(copy)s, true)
;

-- name: name
-- Of a copy: the beginning is that of the slot's name, so that people see whose it is.
-- That of a daemon's (catchup) says that the pipeline is being caught up, see tables.sql and pending.py.
SELECT
  left(%(slot)s, 30) || '_' || %(purpose)s || '_' || left(md5(%(slot)s), 8) || '_' || left(md5(gen_random_uuid()::text), 8)
;

-- name: partitioned
SELECT count(*) FROM pg_class WHERE relkind = 'p' AND oid = ANY (%(oids)s::bigint[]::oid[])
;

-- name: advance
SELECT pg_replication_slot_advance(%(slot)s, %(position)s::pg_lsn)
;
