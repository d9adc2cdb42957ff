CREATE TABLE IF NOT EXISTS records (
    tenant VARBINARY(63) NOT NULL,
    collection VARBINARY(128) NOT NULL,
    id BINARY(16) NOT NULL,
    data MEDIUMBLOB NOT NULL,
    PRIMARY KEY (tenant, collection, id)
) ENGINE = InnoDB
