-- Rows that are there before the pipeline starts: about 45,000, always the same (but for times and uuids).

SELECT setseed(0.42);

INSERT INTO erp.party (code, name, country, credit_limit, address, note)
SELECT 'C' || lpad(n::text, 5, '0'),
       (ARRAY['Åkerlund', 'Brandão', 'Çelik', 'Dvořák', 'Ångström', 'O''Brien', 'Müller', '山田', 'Rossi', 'Nowak'])[1 + n % 10]
           || ' ' || (ARRAY['AB', 'Ltda', 'A.Ş.', 's.r.o.', 'GmbH', 'Ltd', '& Söhne', '商事', 'S.p.A.', 'Sp. z o.o.'])[1 + n % 10] || ' ' || n,
       (ARRAY['SE', 'BR', 'TR', 'CZ', 'DE', 'IE', 'AT', 'JP', 'IT', 'PL'])[1 + n % 10],
       CASE WHEN n % 7 > 0 THEN round((random() * 500000)::numeric, 2) END,
       jsonb_build_object('street', 'Dock ' || n % 97, 'city', 'Port ' || n % 31, 'zip', lpad((n * 37 % 99999)::text, 5, '0')),
       CASE WHEN n % 5 = 0 THEN repeat(md5(n::text), 120) WHEN n % 5 = 1 THEN 'Call before noon.' END
FROM generate_series(1, 1500) AS n;

INSERT INTO erp.product (id, sku, name, uom, list_price, weight_kg, attributes, datasheet)
SELECT n,
       'SKU-' || lpad(n::text, 6, '0'),
       (ARRAY['Pallet', 'Crate', 'Drum', 'Valve', 'Gasket', 'Bearing', 'Motor', 'Cable'])[1 + n % 8] || ' ' || n,
       (ARRAY['EA', 'KGM', 'LTR', 'MTR'])[1 + n % 4],
       round((1 + random() * 900)::numeric, 4),
       round((random() * 80)::numeric, 3),
       jsonb_build_object('hs_code', (100000 + n * 97 % 899999)::text, 'hazard', n % 11 = 0, 'colours', jsonb_build_array('red', 'grün', NULL)),
       repeat(md5((n * 3)::text), 60 + n % 100)
FROM generate_series(1, 800) AS n;

INSERT INTO wms.warehouse (code, name, time_zone)
VALUES ('GOT', 'Göteborg', 'Europe/Stockholm'), ('HAM', 'Hamburg', 'Europe/Berlin'),
       ('SSZ', 'Santos', 'America/Sao_Paulo'), ('YOK', '横浜', 'Asia/Tokyo');

INSERT INTO wms.location (warehouse, code, zone, max_weight_kg)
SELECT w.code, chr(65 + n % 6) || '-' || lpad((n / 10)::text, 2, '0') || '-' || lpad((n % 10)::text, 2, '0'), (chr(65 + n % 6))::"char",
       CASE WHEN n % 9 = 0 THEN 'Infinity'::numeric ELSE 500 + n * 1.25 END
FROM wms.warehouse AS w, generate_series(0, 99) AS n;

INSERT INTO wms.stock_level (warehouse, location, product_id, lot, quantity, reserved, counted_at)
SELECT l.warehouse, l.code, 1 + (n * 13 + ascii(l.code) * 7) % 800, CASE WHEN n % 3 = 0 THEN 'L' || n ELSE '' END,
       round((random() * 2000)::numeric, 3), round((random() * 20)::numeric, 3), now() - n * interval '1 hour'
FROM wms.location AS l, generate_series(1, 10) AS n
ON CONFLICT DO NOTHING;

INSERT INTO erp.sale_order (id, party_id, state, currency, incoterm, ordered_at, requested_on, remarks)
SELECT n, 1 + n * 17 % 1500,
       (ARRAY['confirmed', 'shipped', 'invoiced', 'shipped', 'invoiced', 'cancelled', 'draft'])[1 + n % 7]::erp.order_state,
       (ARRAY['EUR', 'SEK', 'BRL', 'JPY'])[1 + n % 4], (ARRAY['EXW', 'FCA', 'DAP', 'DDP', NULL])[1 + n % 5],
       now() - (6000 - n) * interval '13 minutes', current_date + n % 30,
       CASE WHEN n % 11 = 0 THEN 'Deliver to the back door; ask for "Søren".' END
FROM generate_series(1, 6000) AS n;

INSERT INTO erp.sale_order_line (order_id, line_no, product_id, quantity, unit_price, discount)
SELECT o.id, line, p.id, 1 + (o.id * line) % 40, p.list_price, (ARRAY[0, 0, 5, 12.5])[1 + (o.id % 4)]
FROM erp.sale_order AS o
CROSS JOIN LATERAL generate_series(1, 1 + o.id % 5) AS line
JOIN erp.product AS p ON p.id = 1 + (o.id * 31 + line * 7) % 800;

UPDATE erp.sale_order AS o SET total = t.total
FROM (SELECT order_id, round(sum(quantity * unit_price * (1 - discount / 100)), 2) AS total
      FROM erp.sale_order_line GROUP BY order_id) AS t
WHERE t.order_id = o.id;

INSERT INTO wms.shipment (id, number, order_id, state, carrier, packages, weight_kg, transit_time, ship_to, tags, planned_at)
SELECT md5('shipment' || o.id)::uuid, row_number() OVER (ORDER BY o.id), o.id,
       (ARRAY['planned', 'packed', 'in_transit', 'delivered', 'delivered', 'cancelled'])[1 + o.id % 6]::wms.shipment_state,
       (ARRAY['MAEU', 'HLCU', 'DSV', 'DHL'])[1 + o.id % 4], 1 + o.id % 12, 10 + o.id % 900 + 0.125,
       CASE WHEN o.id % 3 > 0 THEN (o.id % 20) * interval '6 hours' + interval '1 day' END,
       p.address || jsonb_build_object('country', p.country),
       CASE o.id % 4 WHEN 0 THEN '{}' WHEN 1 THEN '{fragile}' WHEN 2 THEN '{fragile,"keep dry"}' ELSE ARRAY[NULL, 'x'] END,
       o.ordered_at + interval '1 day'
FROM erp.sale_order AS o JOIN erp.party AS p ON p.id = o.party_id
WHERE o.state IN ('shipped', 'invoiced');

INSERT INTO wms.milestone (shipment_id, code, classifier, occurred_at, place, details)
SELECT s.id, (ARRAY['GTOT', 'DEPA', 'ARRI', 'DROP'])[step], (ARRAY['ACT', 'ACT', 'EST', 'PLN'])[step],
       s.planned_at + step * interval '9 hours', (ARRAY['SEGOT', 'SEGOT', 'DEHAM', NULL])[step],
       CASE WHEN step = 2 THEN jsonb_build_object('voyage', 'V' || s.number % 500) END
FROM wms.shipment AS s CROSS JOIN LATERAL generate_series(1, 1 + s.number % 4) AS step
ORDER BY s.number, step;

INSERT INTO erp.invoice (number, order_id, issued_on, due_on, net, tax, paid_at)
SELECT 'INV-' || lpad(id::text, 7, '0'), id, ordered_at::date + 3, ordered_at::date + 33, total, round(total * 0.25, 2),
       CASE WHEN id % 3 > 0 THEN ordered_at + interval '20 days' END
FROM erp.sale_order WHERE state = 'invoiced';

SELECT setval(pg_get_serial_sequence('erp.sale_order', 'id'), (SELECT max(id) FROM erp.sale_order)),
       setval(pg_get_serial_sequence('wms.shipment', 'number'), (SELECT max(number) FROM wms.shipment));

ANALYZE;
