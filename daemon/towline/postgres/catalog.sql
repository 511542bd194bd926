-- What a server's catalogs say of tables. Written for PostgreSQL 13 to 18; run with an empty search_path, so that
-- format_type and pg_get_expr print names with their schema.

-- name: tables
-- %(schemas)s, %(names)s: text[]; the name * stands for what can be replicated of a schema.
WITH wanted AS (
  SELECT DISTINCT w.schema, w.name FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w(schema, name)
)
SELECT DISTINCT
  c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
  (
    -- A partitioned table has the rows of its leaves. Where statistics are missing: from the size, roughly.
    SELECT coalesce(sum(
      CASE WHEN leaf.reltuples > 0 OR (leaf.reltuples = 0 AND leaf.relpages > 0) THEN leaf.reltuples::float8
           ELSE pg_relation_size(leaf.oid) / (28 + (
             SELECT coalesce(sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE 24 END), 0)
             FROM pg_attribute a WHERE a.attrelid = leaf.oid AND a.attnum > 0 AND NOT a.attisdropped
           )) END
    ), 0)::bigint
    FROM (
      SELECT c.oid WHERE c.relkind IN ('r', 'm')
      UNION ALL
      SELECT tree.relid FROM pg_partition_tree(c.oid) AS tree WHERE c.relkind = 'p' AND tree.isleaf
    ) AS part
    JOIN pg_class leaf ON leaf.oid = part.oid AND leaf.relkind IN ('r', 'm')
  )
FROM wanted w
JOIN pg_namespace n ON n.nspname = w.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
WHERE c.relname = w.name
   OR w.name = '*'
      AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
      )
;

-- name: columns
SELECT
  a.attrelid::bigint, a.attname::text, a.atttypid::bigint, a.atttypmod, a.attnotnull,
  (a.atthasdef AND a.attgenerated = '') OR a.attidentity <> '',
  CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END,
  a.attidentity = 'a',
  CASE WHEN a.attcollation <> t.typcollation THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
  a.attnum::int
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
WHERE a.attrelid = ANY (%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
;

-- name: types
-- One row a type. The element of an array, the base of a domain, the subtype of a range, the range of a multirange;
-- the attributes of a composite. (PostgreSQL 13 has no multiranges, and no column rngmultitypid to join by.)
SELECT
  t.oid::bigint, n.nspname::text, t.typname::text,
  CASE WHEN e.oid IS NOT NULL THEN 'a' ELSE t.typtype::text END,
  t.typarray::bigint,
  coalesce(e.oid, nullif(t.typbasetype, 0), r.rngsubtype, m.rngtypid, 0)::bigint,
  t.typtypmod,
  ARRAY(
    SELECT a.atttypid::bigint FROM pg_attribute a
    WHERE a.attrelid = t.typrelid AND t.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped
  ),
  t.typsend::oid <> 0 AND t.typreceive::oid <> 0,
  t.typnotnull,
  t.typdefault IS NOT NULL,
  (
    SELECT x.extname::text FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
    WHERE d.classid = 'pg_type'::regclass AND d.objid = coalesce(e.oid, t.oid)
      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  )
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
LEFT JOIN pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_range m ON t.typtype = 'm' AND (to_jsonb(m) ->> 'rngmultitypid')::oid = t.oid
WHERE t.oid = ANY (%(oids)s::oid[])
;

-- name: formats
SELECT f.oid, f.typmod, format_type(f.oid::oid, f.typmod)
FROM unnest(%(oids)s::bigint[], %(typmods)s::int[]) AS f(oid, typmod)
;

-- name: indexes
-- Unique indexes on plain columns that hold for every row. Those WITHOUT OVERLAPS are not of type btree.
SELECT
  i.indrelid::bigint, i.indisprimary, i.indisreplident, i.indimmediate,
  array_agg(a.attname::text ORDER BY k.place),
  bool_and(a.attnotnull)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = ANY (%(oids)s::oid[]) AND k.place <= i.indnkeyatts
  AND i.indisunique AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate
ORDER BY i.indrelid, i.indisprimary DESC, i.indexrelid
;

-- name: foreign_keys
-- A key that refers to a partitioned table has a copy for each partition, with the same conrelid: left out.
SELECT
  k.conrelid::bigint, k.conname::text, n.nspname::text, c.relname::text,
  array_agg(a.attname::text ORDER BY p.place), array_agg(ra.attname::text ORDER BY p.place), k.condeferrable
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.confrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint parent ON parent.oid = k.conparentid
CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS p(attnum, refnum, place)
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum
JOIN pg_attribute ra ON ra.attrelid = k.confrelid AND ra.attnum = p.refnum
WHERE k.contype = 'f' AND k.conrelid = ANY (%(oids)s::oid[]) AND parent.conrelid IS DISTINCT FROM k.conrelid
GROUP BY k.oid, k.conrelid, k.conname, n.nspname, c.relname, k.condeferrable
ORDER BY k.conrelid, k.conname
;

-- name: acting_keys
-- Foreign keys of any table that change rows elsewhere when one of these tables' rows are deleted. Copies for
-- partitions are left out.
SELECT
  k.confrelid::bigint, n.nspname::text, c.relname::text,
  ARRAY(
    SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS p(attnum, place)
    JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = p.attnum ORDER BY p.place
  ),
  k.confupdtype IN ('c', 'n', 'd')
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.confrelid = ANY (%(oids)s::oid[]) AND k.confdeltype IN ('c', 'n', 'd')
  AND k.conparentid = 0
ORDER BY k.confrelid, k.oid
;

-- name: partitions
-- By pg_inherits, since pg_partition_tree tells of what is attached by now, whatever the snapshot. What DETACH
-- CONCURRENTLY (from 14 on) has begun with is none any more.
WITH RECURSIVE tree(root, oid, attached) AS (
  SELECT root, root::oid, NULL::bigint FROM unnest(%(oids)s::bigint[]) AS root
  UNION ALL
  SELECT tree.root, i.inhrelid, i.xmin::text::bigint
  FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
  WHERE (to_jsonb(i) ->> 'inhdetachpending') IS DISTINCT FROM 'true'
)
SELECT tree.root, n.nspname::text, c.relname::text, c.oid::bigint, tree.attached
FROM tree
JOIN pg_class c ON c.oid = tree.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind <> 'p'
ORDER BY tree.root, n.nspname, c.relname
;

-- name: user_types
SELECT n.nspname::text, t.typname::text
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.oid >= 16384 AND t.typtype IN ('b', 'c', 'd', 'e', 'r', 'm')
  AND (c.oid IS NULL OR c.relkind = 'c')
  AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid)
;
