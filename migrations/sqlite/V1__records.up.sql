-- Records as components append them, oldest first. With MySQL configured it is the outbox: rows leave when they are there.
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    tenant TEXT NOT NULL,
    collection TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE INDEX records_by_collection ON records (tenant, collection, id);
