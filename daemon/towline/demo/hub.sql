-- The demo's hub, before the pipeline is applied: canonical tables, and a crosswalk from the ERP's parties to the codes
-- that the rest of the company knows them by. The tables of the schema replica are made by `towline apply`.

CREATE SCHEMA hub;

CREATE TABLE hub.party_crosswalk (
    party_id bigint PRIMARY KEY,
    customer_code text NOT NULL,
    region text NOT NULL
);
INSERT INTO hub.party_crosswalk (party_id, customer_code, region)
SELECT n, 'CUST-' || lpad((n * 7919 % 100000)::text, 5, '0'), (ARRAY['NORD', 'LATAM', 'APAC'])[1 + n % 3]
FROM generate_series(1, 1500) AS n
WHERE n % 10 > 0;                               -- some are not known yet

CREATE TABLE hub.trade_order (
    order_no text PRIMARY KEY,
    customer_code text NOT NULL,
    region text,
    status text NOT NULL,
    currency character(3) NOT NULL,
    total numeric(16,2) NOT NULL,
    incoterm text,
    ordered_at timestamp with time zone NOT NULL,
    requested_on date,
    changed_at timestamp with time zone
);

CREATE TABLE hub.stock_level (
    place text NOT NULL,
    product_id integer NOT NULL,
    lot text NOT NULL,
    available numeric(14,3) NOT NULL,
    counted_at timestamp with time zone,
    PRIMARY KEY (place, product_id, lot)
);

CREATE TABLE hub.shipment (
    shipment_id uuid PRIMARY KEY,
    shipment_no text NOT NULL UNIQUE,
    order_no text NOT NULL,
    status text NOT NULL,
    carrier text NOT NULL,
    destination text,
    gross_weight_kgm numeric(18,3) NOT NULL,
    expected_at timestamp with time zone
);
