-- When a row was appended by the host's clock, in milliseconds since 1970, if its id says something else: ids never go
-- back, and clocks do.
ALTER TABLE records ADD COLUMN at INTEGER;
ALTER TABLE dead_letters ADD COLUMN at INTEGER;
CREATE INDEX records_by_time ON records (tenant, collection, at) WHERE at IS NOT NULL;
-- One row: the greatest id that was written, when the host last ran, and for how many milliseconds retention waits
-- since the clock cannot be trusted.
CREATE TABLE clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last_id BLOB,
    seen INTEGER,
    doubt INTEGER NOT NULL
) STRICT;
INSERT INTO clock (one, last_id, doubt) SELECT 1, max(id), 0 FROM records;
