-- Tables and generators of every workload. What they make depends on numbers only, so that every run replicates the same
-- bytes. What is in bench_gen is left behind at the source.

CREATE TABLE bench_marker (id int PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());

CREATE TABLE orders (
    id          bigint PRIMARY KEY,
    customer    text NOT NULL,
    status      text NOT NULL,
    note        text,
    amount      numeric(18,2) NOT NULL,
    created_at  timestamptz NOT NULL,
    paid        boolean NOT NULL,
    quantity    int NOT NULL,
    order_date  date NOT NULL,
    attrs       jsonb
);

CREATE SCHEMA bench_gen;

-- One row in 7 has a NULL note; one in 50 has quotes, a backslash, a tab, a newline and non-ASCII text.
CREATE FUNCTION bench_gen.orders(lo bigint, hi bigint) RETURNS SETOF orders LANGUAGE sql AS $$
    SELECT i,
           'Customer ' || lpad((h % 100000)::text, 6, '0'),
           (ARRAY['new', 'paid', 'packed', 'shipped', 'returned'])[1 + h % 5],
           CASE WHEN h % 7 = 0 THEN NULL
                WHEN h % 50 = 1 THEN E'tab\there, "quotes", a \\ and\na new line; naïve café ✓ ' || i
                ELSE left(md5(i::text) || md5(h::text), 20 + (h % 45)::int) END,
           (h % 100000000)::numeric / 100,
           timestamptz '2024-01-01 00:00:00+00' + i * interval '7.003 seconds',
           h % 3 = 0,
           1 + (h % 20)::int,
           date '2024-01-01' + (h % 730)::int,
           jsonb_build_object('sku', 'SKU-' || (h % 5000), 'weight', round((h % 997)::numeric / 10, 1),
                              'tags', jsonb_build_array('t' || (h % 13), 't' || (h % 17)))
    FROM generate_series(lo, hi) AS i, LATERAL (SELECT hashint8(i)::bigint + 2147483648 AS h) AS x
$$;

-- W1: n rows, one transaction per `batch` rows
CREATE PROCEDURE bench_gen.insert_orders(n bigint, batch int) LANGUAGE plpgsql AS $$
BEGIN
    FOR b IN 0 .. (n - 1) / batch LOOP
        INSERT INTO orders SELECT * FROM bench_gen.orders(b * batch + 1, least((b + 1) * batch, n));
        COMMIT;
    END LOOP;
END $$;

-- W3: n updates of `keys` rows, one transaction per `batch` updates, skewed towards the low keys
CREATE PROCEDURE bench_gen.update_orders(n bigint, keys int, batch int) LANGUAGE plpgsql AS $$
DECLARE
    k bigint;
BEGIN
    PERFORM setseed(0.42);
    FOR i IN 1 .. n LOOP
        k := 1 + floor(keys * power(random(), 1.5));
        UPDATE orders SET quantity = quantity + 1, amount = amount + 0.25,
                          status = (ARRAY['new', 'paid', 'packed', 'shipped', 'returned'])[1 + i % 5]
        WHERE id = k;
        IF i % batch = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
    COMMIT;
END $$;

-- W5: new rows get ids from here
CREATE SEQUENCE bench_gen.live_id START 1000001;

-- W7: n rows over `tables` tables, in transactions of 5 rows, each in another table; every second one an update of the
-- row that was inserted last.
CREATE PROCEDURE bench_gen.make_tables(tables int) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 1 .. tables LOOP
        EXECUTE format('CREATE TABLE %I (id bigint PRIMARY KEY, name text NOT NULL, amount numeric(12,2), changed timestamptz)',
                       'part_' || lpad(t::text, 4, '0'));
    END LOOP;
END $$;

CREATE PROCEDURE bench_gen.spread(n bigint, tables int) LANGUAGE plpgsql AS $$
DECLARE
    t text;
BEGIN
    FOR i IN 0 .. n - 1 LOOP
        t := 'part_' || lpad((1 + (i / 2) % tables)::text, 4, '0');
        IF i % 2 = 0 THEN
            EXECUTE format('INSERT INTO %I VALUES ($1, $2, $3, $4)', t)
            USING i, 'Part ' || i, (i % 100000)::numeric / 100, timestamptz '2024-01-01 00:00:00+00' + i * interval '1 second';
        ELSE
            EXECUTE format('UPDATE %I SET amount = amount + 1, changed = changed + interval ''1 minute'' WHERE id = $1', t) USING i - 1;
        END IF;
        IF i % 5 = 4 THEN
            COMMIT;
        END IF;
    END LOOP;
    COMMIT;
END $$;

-- W8 and the sweep over columns: a table of a key, `columns` - 1 columns of several types, and a text of `bytes` bytes
-- (none: 0), stored out of line when it is long, and not compressed.
CREATE PROCEDURE bench_gen.make_wide(columns int, bytes int) LANGUAGE plpgsql AS $$
DECLARE
    kinds text[] := ARRAY['int', 'text', 'numeric(12,2)', 'timestamptz', 'boolean', 'bigint', 'date', 'text'];
    list text := '';
BEGIN
    FOR c IN 2 .. columns LOOP
        list := list || format(', c%s %s', c, kinds[1 + c % 8]);
    END LOOP;
    EXECUTE format('CREATE TABLE wide (id bigint PRIMARY KEY%s%s)', list, CASE WHEN bytes > 0 THEN ', body text' END);
    IF bytes > 0 THEN
        ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    END IF;
END $$;

CREATE PROCEDURE bench_gen.insert_wide(n bigint, columns int, bytes int, batch int) LANGUAGE plpgsql AS $$
DECLARE
    formulas text[] := ARRAY['(i % 1000)::int', '''text '' || i', '(i % 100000)::numeric / 100',
                             'timestamptz ''2024-01-01 00:00:00+00'' + i * interval ''1 second''', 'i % 3 = 0', 'i * 1000003',
                             'date ''2024-01-01'' + (i % 730)::int', 'CASE WHEN i % 5 > 0 THEN md5(i::text) END'];
    list text := '';
BEGIN
    FOR c IN 2 .. columns LOOP
        list := list || ', ' || formulas[1 + c % 8];
    END LOOP;
    IF bytes > 0 THEN
        list := list || format(', left(repeat(md5(i::text), %s), %s)', bytes / 32 + 1, bytes);
    END IF;
    FOR b IN 0 .. (n - 1) / batch LOOP
        EXECUTE format('INSERT INTO wide SELECT i%s FROM generate_series($1, $2) AS i', list)
        USING b * batch + 1, least((b + 1) * batch, n);
        COMMIT;
    END LOOP;
END $$;

-- Updates each row once, and leaves the long text as it is.
CREATE PROCEDURE bench_gen.update_wide(n bigint, batch int) LANGUAGE plpgsql AS $$
BEGIN
    FOR b IN 0 .. (n - 1) / batch LOOP
        UPDATE wide SET c2 = c2 + 1, c3 = c3 + interval '1 minute' WHERE id BETWEEN b * batch + 1 AND least((b + 1) * batch, n);
        COMMIT;
    END LOOP;
END $$;

