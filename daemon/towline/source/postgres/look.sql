-- Looks at the source's catalog. Run with pg_catalog alone on the search_path; for PostgreSQL 13 to 18.

-- name: position
SELECT coalesce(pg_wal_lsn_diff(
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0'), 0)::bigint
;

-- name: named
SELECT c.oid::bigint, n.nspname::text, c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%(oids)s::oid[])
;

-- name: footprint
-- %% is a percent sign. Indexes: those that a replica identity can be made of.
-- Partitions by pg_inherits, since pg_partition_tree would lock them.
WITH RECURSIVE links(member, parent, made) AS (
  SELECT i.inhrelid, i.inhparent, i.xmin FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent
  WHERE c.oid = ANY (%(oids)s::oid[]) AND c.relkind = 'p'
  UNION ALL
  SELECT i.inhrelid, i.inhparent, i.xmin FROM links JOIN pg_inherits i ON i.inhparent = links.member
)
SELECT coalesce(md5(string_agg(part.line, E'\n' ORDER BY part.line)), '')
FROM (
  SELECT format('t %%s %%s %%s %%s %%s', c.oid, n.nspname, c.relname, c.relreplident, c.relpersistence) AS line
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = ANY (%(oids)s::oid[])
  UNION ALL
  SELECT format('c %%s %%s %%s %%s %%s %%s', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated)
  FROM pg_attribute a
  WHERE a.attrelid = ANY (%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT format('i %%s %%s %%s %%s', i.indrelid, i.indkey, i.indisprimary, i.indisreplident)
  FROM pg_index i
  WHERE i.indrelid = ANY (%(oids)s::oid[]) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
  UNION ALL
  -- As jsonb: with the row filter and the list of columns, which servers have from 15 on. The rows of what is set
  -- anew have other OIDs; that of a publication another xmin, whatever ALTER did to it.
  SELECT format('p %%s', to_jsonb(r))
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
  WHERE r.prrelid = ANY (%(oids)s::oid[]) AND p.pubname = %(publication)s
  UNION ALL
  SELECT format('l %%s %%s %%s', l.member, l.parent, l.made) FROM links AS l
  UNION ALL
  SELECT format('o %%s %%s', p.xmin, to_jsonb(p)) FROM pg_publication p WHERE p.pubname = %(publication)s
) AS part
;

-- name: attached
-- Of partitions: each link to the root with the transaction that made it, and the one that made the table (that of its
-- system columns, which never change), and the number of the command within the transaction.
WITH RECURSIVE path(leaf, place, member) AS (
  SELECT leaf, 0, leaf FROM unnest(%(oids)s::oid[]) AS leaf
  UNION ALL
  SELECT path.leaf, path.place + 1, i.inhparent FROM path JOIN pg_inherits i ON i.inhrelid = path.member
)
SELECT path.leaf::bigint, n.nspname::text, c.relname::text, i.xmin::text, a.xmin::text, i.cmin::text::bigint
FROM path
JOIN pg_inherits i ON i.inhrelid = path.member
JOIN pg_attribute a ON a.attrelid = path.member AND a.attnum = -1
JOIN pg_class c ON c.oid = path.leaf
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY path.leaf, path.place
;

-- name: schemas
-- From 15 on: the schemas that are published as a whole.
SELECT coalesce(string_agg(s.pnnspid::text, ' ' ORDER BY s.pnnspid), '')
FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid
WHERE p.pubname = %(publication)s
;
