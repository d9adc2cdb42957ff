DROP TABLE clock;
DROP INDEX records_by_time;
ALTER TABLE dead_letters DROP COLUMN at;
ALTER TABLE records DROP COLUMN at;
