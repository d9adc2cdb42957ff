CREATE TABLE IF NOT EXISTS record_times (
    tenant VARBINARY(63) NOT NULL,
    collection VARBINARY(128) NOT NULL,
    id BINARY(16) NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (tenant, collection, id),
    KEY by_time (tenant, collection, at)
) ENGINE = InnoDB
