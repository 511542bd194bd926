-- What check, plan and apply ask of a source. Run with pg_catalog alone on the search_path; for PostgreSQL 13 to 18.

-- name: server
SELECT
  current_user::text,
  pg_is_in_recovery(),
  current_setting('wal_level'),
  current_setting('max_replication_slots')::int,
  (SELECT count(*) FROM pg_replication_slots)::int,
  current_setting('max_wal_senders')::int,
  (SELECT count(*) FROM pg_stat_replication)::int,
  -- Amazon's service grants replication by a role instead of the attribute.
  (SELECT r.rolsuper OR r.rolreplication FROM pg_roles r WHERE r.rolname = current_user)
    OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER')),
  current_setting('max_slot_wal_keep_size'),
  coalesce(current_setting('idle_replication_slot_timeout', true), '0'),
  current_setting('server_encoding'),
  current_setting('hot_standby_feedback') = 'on',
  coalesce(current_setting('synchronized_standby_slots', true), ''),
  has_database_privilege(current_database(), 'CREATE')
;

-- name: unreadable
-- Of the columns that travel: those that the role may not read, by table.
SELECT n.nspname::text, c.relname::text, has_schema_privilege(n.oid, 'USAGE')
FROM unnest(%(schemas)s::text[], %(tables)s::text[], %(columns)s::text[]) AS w(schema, name, attname)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.attname
WHERE NOT has_column_privilege(c.oid, a.attnum, 'SELECT') OR NOT has_schema_privilege(n.oid, 'USAGE')
GROUP BY n.oid, n.nspname, c.relname
ORDER BY n.nspname, c.relname
;

-- name: tables
SELECT n.nspname::text, c.relname::text, row_security_active(c.oid), pg_has_role(c.relowner, 'USAGE')
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w(schema, name)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
ORDER BY n.nspname, c.relname
;

-- name: generated
SELECT n.nspname::text, c.relname::text, a.attname::text, a.attgenerated::text
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w(schema, name)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
;

-- name: leaves
-- The partitions of partitioned tables, each with its replica identity: its kind, and the columns of its index.
SELECT
  n.nspname::text, c.relname::text, ln.nspname::text, leaf.relname::text, leaf.relreplident::text,
  ARRAY(
    SELECT a.attname::text
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = leaf.oid AND k.place <= i.indnkeyatts AND i.indimmediate AND i.indisvalid
      AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
  )
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w(schema, name)
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'p'
CROSS JOIN LATERAL pg_partition_tree(c.oid) AS tree
JOIN pg_class leaf ON leaf.oid = tree.relid AND leaf.relkind = 'r'
JOIN pg_namespace ln ON ln.oid = leaf.relnamespace
WHERE tree.isleaf
ORDER BY n.nspname, c.relname, ln.nspname, leaf.relname
;

-- name: publication
SELECT
  p.oid::bigint, p.puballtables, p.pubviaroot,
  p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
  pg_has_role(p.pubowner, 'USAGE')
FROM pg_publication p
WHERE p.pubname = %(publication)s
;

-- name: published_13
SELECT n.nspname::text, c.relname::text, NULL::text[], false
FROM pg_publication_rel r
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.prpubid = %(oid)s
;

-- name: published_15
-- With the columns of its list, if it has one, and whether it has a row filter; a schema has a row of its own.
SELECT
  n.nspname::text, c.relname::text,
  CASE WHEN r.prattrs IS NOT NULL THEN ARRAY(
    SELECT a.attname::text FROM unnest(r.prattrs::int2[]) AS k(attnum)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
  ) END,
  r.prqual IS NOT NULL
FROM pg_publication_rel r
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.prpubid = %(oid)s
UNION ALL
SELECT n.nspname::text, '*', NULL, false
FROM pg_publication_namespace s
JOIN pg_namespace n ON n.oid = s.pnnspid
WHERE s.pnpubid = %(oid)s
;

-- name: writers
-- Who must end before a slot can be created.
SELECT coalesce(string_agg(format('process %s since %s', a.pid, a.xact_start::timestamp(0)), ', ' ORDER BY a.xact_start), '')
FROM (
  SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 5
) AS a
;

-- name: prepared
SELECT count(*)::int FROM pg_prepared_xacts
;
