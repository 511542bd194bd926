#!/bin/bash
# Run once by the postgres image, in the new source: the role that Towline logs in with, and what it may.
set -euo pipefail
psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --set=ON_ERROR_STOP=1 \
    --set=password="$(cat /run/secrets/source_towline)" <<'SQL'
CREATE ROLE towline LOGIN REPLICATION PASSWORD :'password';
GRANT CREATE ON DATABASE erp TO towline;
-- A publication can only be made by the owner of its tables.
GRANT USAGE, CREATE ON SCHEMA erp, wms TO towline;
SELECT format('ALTER TABLE %s OWNER TO towline', oid::regclass) FROM pg_class
WHERE relkind = 'r' AND relnamespace IN ('erp'::regnamespace, 'wms'::regnamespace) \gexec
SQL
