-- The workload's transactions: one statement each, called with three numbers a, b, c in [0, 1) that say which rows.
-- `-- name: NAME WEIGHT` begins each. A pick of a row that is not there makes a transaction without changes, as in life.

-- name: place_order 22
WITH placed AS (
    INSERT INTO erp.sale_order (party_id, currency, incoterm, requested_on, remarks)
    SELECT id, (ARRAY['EUR', 'SEK', 'BRL', 'JPY'])[1 + floor(%(b)s * 4)::int], 'DAP', current_date + 14,
           CASE WHEN %(c)s < 0.1 THEN 'call first' END
    FROM erp.party WHERE id >= (1 + floor(%(a)s * (SELECT max(id) FROM erp.party)))::bigint ORDER BY id LIMIT 1
    RETURNING id
), lines AS (
    INSERT INTO erp.sale_order_line (order_id, line_no, product_id, quantity, unit_price, discount)
    SELECT placed.id, line, p.id, 1 + floor(%(c)s * 20), p.list_price, CASE WHEN line = 3 THEN 7.5 ELSE 0 END
    FROM placed, generate_series(1, 1 + floor(%(b)s * 4)::int) AS line
    JOIN erp.product AS p ON p.id = 1 + (floor(%(a)s * 800)::int + line * 31) %% 800
    RETURNING 1
)
SELECT count(*) FROM lines

-- name: confirm_order 20
UPDATE erp.sale_order AS o
SET state = 'confirmed', total = (SELECT round(sum(quantity * unit_price * (1 - discount / 100)), 2)
                                  FROM erp.sale_order_line AS l WHERE l.order_id = o.id)
WHERE id = (SELECT id FROM erp.sale_order WHERE state = 'draft' ORDER BY id LIMIT 1)
  AND EXISTS (SELECT FROM erp.sale_order_line AS l WHERE l.order_id = o.id)

-- name: reopen_order 3
UPDATE erp.sale_order SET state = 'draft'
WHERE id = (SELECT id FROM erp.sale_order WHERE state = 'confirmed' ORDER BY id DESC LIMIT 1)

-- name: delete_draft 4
DELETE FROM erp.sale_order WHERE id = (SELECT id FROM erp.sale_order WHERE state = 'draft' ORDER BY id DESC LIMIT 1)

-- name: edit_line 10
UPDATE erp.sale_order_line SET quantity = quantity + 1, discount = round(%(c)s::numeric * 15, 2)
WHERE order_id = (1 + floor(%(a)s * (SELECT max(id) FROM erp.sale_order)))::bigint AND line_no = 1 + floor(%(b)s * 3)

-- name: renumber_lines 3
UPDATE erp.sale_order_line SET line_no = line_no + CASE WHEN line_no > 100 THEN -100 ELSE 100 END
WHERE order_id = (1 + floor(%(a)s * (SELECT max(id) FROM erp.sale_order)))::bigint

-- name: ship_order 12
WITH shipped AS (
    UPDATE erp.sale_order SET state = 'shipped'
    WHERE id = (SELECT id FROM erp.sale_order WHERE state = 'confirmed' ORDER BY id LIMIT 1)
    RETURNING id, party_id
), shipment AS (
    INSERT INTO wms.shipment (order_id, state, carrier, packages, weight_kg, transit_time, ship_to, tags)
    SELECT shipped.id, 'packed', (ARRAY['MAEU', 'HLCU', 'DSV', 'DHL'])[1 + floor(%(a)s * 4)::int], 1 + floor(%(b)s * 9),
           round((%(c)s * 900)::numeric, 3), floor(%(a)s * 9) * interval '12 hours',
           p.address || jsonb_build_object('country', p.country), ARRAY['new']
    FROM shipped JOIN erp.party AS p ON p.id = shipped.party_id
    RETURNING id
)
INSERT INTO wms.milestone (shipment_id, code, classifier, occurred_at, place)
SELECT id, 'GTOT', 'ACT', now(), 'SEGOT' FROM shipment

-- name: report_milestone 18
WITH moving AS (
    UPDATE wms.shipment
    SET state = CASE state WHEN 'planned' THEN 'packed' WHEN 'packed' THEN 'in_transit' ELSE 'delivered' END::wms.shipment_state
    WHERE number = (1 + floor(%(a)s * (SELECT max(number) FROM wms.shipment)))::bigint AND state <> 'cancelled'
    RETURNING id
)
INSERT INTO wms.milestone (shipment_id, code, classifier, occurred_at, place, details)
SELECT id, (ARRAY['DEPA', 'ARRI', 'DROP'])[1 + floor(%(b)s * 3)::int], 'ACT', now(), 'DEHAM',
       CASE WHEN %(c)s < 0.5 THEN jsonb_build_object('delay_min', floor(%(c)s * 300)) END
FROM moving

-- name: cancel_shipment 2
UPDATE wms.shipment SET state = CASE WHEN state = 'cancelled' THEN 'planned' ELSE 'cancelled' END::wms.shipment_state
WHERE number = (1 + floor(%(a)s * (SELECT max(number) FROM wms.shipment)))::bigint

-- name: prune_milestones 1
DELETE FROM wms.milestone
WHERE shipment_id = (SELECT id FROM wms.shipment WHERE number = (1 + floor(%(a)s * (SELECT max(number) FROM wms.shipment)))::bigint)

-- name: invoice_order 8
WITH invoiced AS (
    UPDATE erp.sale_order SET state = 'invoiced'
    WHERE id = (SELECT id FROM erp.sale_order WHERE state = 'shipped' ORDER BY id LIMIT 1)
    RETURNING id, total
)
INSERT INTO erp.invoice (number, order_id, issued_on, due_on, net, tax)
SELECT 'INV-' || lpad(id::text, 7, '0'), id, current_date, current_date + 30, total, round(total * 0.25, 2) FROM invoiced

-- name: pay_invoice 6
UPDATE erp.invoice SET paid_at = now() WHERE id = (SELECT min(id) FROM erp.invoice WHERE paid_at IS NULL)

-- name: pick_stock 24
UPDATE wms.stock_level SET quantity = greatest(quantity - floor(%(c)s * 20), 0), reserved = floor(%(c)s * 5)
WHERE (warehouse, location, product_id, lot) = (
    SELECT warehouse, location, product_id, lot FROM wms.stock_level
    WHERE warehouse = (ARRAY['GOT', 'HAM', 'SSZ', 'YOK'])[1 + floor(%(a)s * 4)::int]
      AND location >= chr(65 + floor(%(b)s * 6)::int) || '-' || lpad(floor(%(c)s * 10)::text, 2, '0')
    ORDER BY warehouse, location, product_id, lot LIMIT 1)

-- name: count_zone 2
UPDATE wms.stock_level SET counted_at = now(), quantity = quantity + 1
WHERE warehouse = (ARRAY['GOT', 'HAM', 'SSZ', 'YOK'])[1 + floor(%(a)s * 4)::int]
  AND location LIKE chr(65 + floor(%(b)s * 6)::int) || '-' || lpad(floor(%(c)s * 10)::text, 2, '0') || '-%%'

-- name: receive_stock 6
INSERT INTO wms.stock_level (warehouse, location, product_id, lot, quantity, counted_at)
SELECT warehouse, code, 1 + floor(%(b)s * 800)::int, CASE WHEN %(c)s < 0.5 THEN 'R' ELSE '' END, 10 + floor(%(c)s * 100), now()
FROM wms.location WHERE warehouse = (ARRAY['GOT', 'HAM', 'SSZ', 'YOK'])[1 + floor(%(a)s * 4)::int] ORDER BY code
OFFSET floor(%(c)s * 100) LIMIT 1
ON CONFLICT (warehouse, location, product_id, lot) DO UPDATE SET quantity = stock_level.quantity + excluded.quantity

-- name: move_stock 4
WITH moved AS (
    SELECT warehouse, location, product_id, lot FROM wms.stock_level
    WHERE warehouse = 'HAM' AND location >= chr(65 + floor(%(a)s * 6)::int)
    ORDER BY warehouse, location, product_id, lot LIMIT 1
), destination AS (
    SELECT code FROM wms.location WHERE warehouse = 'HAM' ORDER BY code OFFSET floor(%(b)s * 100) LIMIT 1
)
UPDATE wms.stock_level AS s SET location = d.code
FROM moved AS m, destination AS d
WHERE s.warehouse = m.warehouse AND s.location = m.location AND s.product_id = m.product_id AND s.lot = m.lot
  AND NOT EXISTS (SELECT FROM wms.stock_level AS o WHERE o.warehouse = m.warehouse AND o.location = d.code
                                                     AND o.product_id = m.product_id AND o.lot = m.lot)

-- name: clear_empty_stock 2
DELETE FROM wms.stock_level WHERE quantity = 0 AND warehouse = (ARRAY['GOT', 'HAM', 'SSZ', 'YOK'])[1 + floor(%(a)s * 4)::int]

-- name: rename_location 1
UPDATE wms.location SET code = CASE WHEN code LIKE '%%*' THEN rtrim(code, '*') ELSE code || '*' END
WHERE (warehouse, code) = (SELECT warehouse, code FROM wms.location ORDER BY warehouse, code OFFSET floor(%(a)s * 400) LIMIT 1)

-- name: edit_party 4
UPDATE erp.party SET credit_limit = round((%(b)s * 500000)::numeric, 2), active = %(c)s > 0.05, updated_at = now()
WHERE id = (1 + floor(%(a)s * (SELECT max(id) FROM erp.party)))::bigint

-- name: add_party 1
INSERT INTO erp.party (code, name, country, address, note)
SELECT 'N' || 1 + max(id), 'Neu ' || 1 + max(id), 'DE', jsonb_build_object('city', 'Port ' || floor(%(a)s * 31)),
       CASE WHEN %(b)s < 0.3 THEN repeat(md5(%(c)s::text), 100) END
FROM erp.party

-- name: price_product 4
UPDATE erp.product SET list_price = round((1 + %(b)s * 900)::numeric, 4) WHERE id = 1 + floor(%(a)s * 800)::int

-- name: rewrite_datasheet 1
UPDATE erp.product SET datasheet = repeat(md5(%(c)s::text), 50 + floor(%(b)s * 100)::int) WHERE id = 1 + floor(%(a)s * 800)::int
