-- Queries on the source's present state. Run with pg_catalog alone on the search_path; for PostgreSQL 13 to 18.

-- name: identity
-- A standby knows its timeline from its last restart point and from how far it must recover.
SELECT
  (SELECT system_identifier::text FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery()
       THEN (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)
             FROM pg_control_checkpoint() AS c, pg_control_recovery() AS r)
       ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  current_database()::text,
  pg_is_in_recovery(),
  (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
;

-- name: at_work
-- disabled: track_activities is off.
SELECT FROM pg_stat_activity
WHERE pid = %(pid)s AND (extract(epoch FROM backend_start) * 1000000)::bigint = %(started)s
  AND state IN ('active', 'disabled') AND wait_event_type IS DISTINCT FROM 'Client'
;

-- name: slot
-- Through jsonb, since servers before 16 and 17 lack some of the columns.
SELECT
  coalesce(pg_wal_lsn_diff(s.confirmed_flush_lsn, '0/0'), 0)::bigint,
  coalesce(pg_wal_lsn_diff(s.restart_lsn, '0/0'), 0)::bigint,
  coalesce(s.active_pid, 0),
  greatest(0, coalesce(pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)
  )::bigint,
  coalesce(s.wal_status, ''),
  coalesce(s.plugin::text, ''),
  coalesce(s.database::text, ''),
  s.slot_type = 'logical',
  coalesce(
    to_jsonb(s)->>'invalidation_reason', CASE WHEN (to_jsonb(s)->>'conflicting')::bool THEN 'conflict' ELSE '' END),
  coalesce((to_jsonb(s)->>'failover')::bool, false),
  coalesce((to_jsonb(s)->>'synced')::bool AND pg_is_in_recovery(), false),
  -- A copy that a daemon reads its backlog through, see backlog.sql for its name.
  EXISTS (
    SELECT FROM pg_replication_slots c WHERE c.temporary AND starts_with(
      c.slot_name::text, left(s.slot_name::text, 30) || '_catchup_' || left(md5(s.slot_name::text), 8)))
FROM pg_replication_slots s
WHERE s.slot_name = %(slot)s
;

-- name: large
-- From 14 on. A walsender's query is the command that it was sent; one that is cut short (track_activity_query_size),
-- hidden from the role or not tracked says nothing.
SELECT
  t.stream_txns, t.stream_bytes, t.spill_txns, t.spill_bytes,
  (SELECT CASE WHEN a.query LIKE 'START_REPLICATION %%)' THEN strpos(a.query, '"streaming" ''on''') > 0 END
   FROM pg_stat_activity a WHERE a.pid = s.active_pid)
FROM pg_replication_slots s JOIN pg_stat_replication_slots t USING (slot_name)
WHERE s.slot_name = %(slot)s
;

-- name: look
-- The snapshot is taken before the positions are read: all that it sees was logged before the first of them.
SELECT
  pg_current_snapshot()::text,
  pg_is_in_recovery(),
  coalesce(pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0'), 0
  )::bigint,
  coalesce(pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0'), 0
  )::bigint,
  clock_timestamp()
;

-- name: running
-- The numbers of all transactions that have one, prepared ones among them: each has a lock on its own.
SELECT transactionid::text::bigint FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'
;

-- name: end_walsender
-- And who reads a backlog through a copy of the slot.
SELECT pg_terminate_backend(s.active_pid)
FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
WHERE a.application_name = %(name)s AND (
  s.slot_name = %(slot)s
  OR s.temporary AND starts_with(s.slot_name::text, left(%(slot)s, 30) || '_catchup_' || left(md5(%(slot)s), 8)))
;

-- name: as_seen
-- Whether a table and its partitions are those that the transaction's snapshot sees, and stored in the same files.
-- Catalogs are read as of the snapshot; functions look at what is true now. The table is
-- locked when this is parsed.
WITH seen AS (
  SELECT c.oid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = %(schema)s AND c.relname = %(name)s
), parts AS (
  SELECT oid FROM seen
  UNION
  SELECT tree.relid::oid FROM seen, pg_partition_tree(seen.oid) AS tree
)
SELECT
  NOT EXISTS (SELECT FROM {table} WHERE false)
  AND EXISTS (SELECT FROM seen WHERE oid = to_regclass(format('%%I.%%I', %(schema)s, %(name)s)))
  AND NOT EXISTS (
    SELECT FROM parts LEFT JOIN pg_class c ON c.oid = parts.oid
    WHERE c.oid IS NULL OR nullif(c.relfilenode, 0) IS DISTINCT FROM pg_relation_filenode(c.oid)),
  -- Columns that are gone by now, or have another type: what is read would not be what is expected.
  ARRAY(
    SELECT w.name FROM unnest(%(columns)s::text[], %(types)s::bigint[]) AS w(name, type)
    LEFT JOIN (seen JOIN pg_attribute a ON a.attrelid = seen.oid AND NOT a.attisdropped) ON a.attname = w.name
    WHERE a.atttypid IS DISTINCT FROM w.type::oid)
;

-- name: flushed
SELECT coalesce(pg_wal_lsn_diff(
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0'), 0)::bigint
;

-- name: writer_delay
-- In milliseconds.
SELECT setting::int FROM pg_settings WHERE name = 'wal_writer_delay'
;

-- name: root
SELECT rn.nspname::text, rc.relname::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class rc ON rc.oid = pg_partition_root(c.oid) AND rc.oid <> c.oid
JOIN pg_namespace rn ON rn.oid = rc.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
;

-- name: key_order
-- For each column of a table's identity, in order: how the index over it compares values. %(columns)s: text[].
-- The operators are less, less or equal, equal, greater or equal, greater.
WITH chosen AS (
  SELECT c.relkind::text, i.*
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_index i ON i.indrelid = c.oid
  JOIN pg_class ic ON ic.oid = i.indexrelid
  JOIN pg_am am ON am.oid = ic.relam AND am.amname = 'btree'
  WHERE n.nspname = %(schema)s AND c.relname = %(name)s
    AND i.indisunique AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL
    AND ARRAY(
      SELECT a.attname::text
      FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
      WHERE k.place <= i.indnkeyatts ORDER BY k.place
    ) = %(columns)s::text[]
  ORDER BY i.indisreplident DESC, i.indisprimary DESC, i.indexrelid
  LIMIT 1
)
SELECT
  chosen.relkind,
  ARRAY(
    SELECT opn.nspname::text
    FROM pg_amop ao JOIN pg_operator op ON op.oid = ao.amopopr JOIN pg_namespace opn ON opn.oid = op.oprnamespace
    WHERE ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
      AND ao.amoppurpose = 's' ORDER BY ao.amopstrategy
  ),
  ARRAY(
    SELECT op.oprname::text
    FROM pg_amop ao JOIN pg_operator op ON op.oid = ao.amopopr
    WHERE ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
      AND ao.amoppurpose = 's' ORDER BY ao.amopstrategy
  ),
  CASE WHEN k.coll <> a.attcollation THEN cn.nspname::text END,
  CASE WHEN k.coll <> a.attcollation THEN co.collname::text END
FROM chosen
CROSS JOIN LATERAL unnest(chosen.indkey::int2[], chosen.indclass::oid[], chosen.indcollation::oid[])
  WITH ORDINALITY AS k(attnum, opclass, coll, place)
JOIN pg_attribute a ON a.attrelid = chosen.indrelid AND a.attnum = k.attnum
JOIN pg_opclass oc ON oc.oid = k.opclass
LEFT JOIN pg_collation co ON co.oid = k.coll
LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
WHERE k.place <= chosen.indnkeyatts
ORDER BY k.place
;
