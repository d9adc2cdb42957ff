DROP TABLE IF EXISTS record_times
