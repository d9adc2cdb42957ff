//! Records: in the host's own file, and on their way to MySQL.

mod mysql;
mod records;
