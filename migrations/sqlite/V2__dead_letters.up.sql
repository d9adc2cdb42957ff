-- Rows that MySQL refuses, with what it said.
CREATE TABLE dead_letters (
    id BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    collection TEXT NOT NULL,
    data BLOB NOT NULL,
    error TEXT NOT NULL
) STRICT;
