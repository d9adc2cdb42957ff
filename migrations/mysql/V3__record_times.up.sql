CREATE TABLE IF NOT EXISTS record_times (
    tenant VARBINARY(63) NOT NULL,
    collection VARBINARY(128) NOT NULL,
    at BIGINT NOT NULL,
    id BINARY(16) NOT NULL,
    PRIMARY KEY (tenant, collection, at, id)
) ENGINE = InnoDB
