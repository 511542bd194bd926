#!/bin/bash
# Run once by the postgres image, in the new hub: the role that Towline logs in with. It owns the schemas that it makes.
set -euo pipefail
psql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --set=ON_ERROR_STOP=1 \
    --set=password="$(cat /run/secrets/hub_towline)" <<'SQL'
CREATE ROLE towline LOGIN PASSWORD :'password';
GRANT CREATE, TEMPORARY ON DATABASE hub TO towline;
SQL
