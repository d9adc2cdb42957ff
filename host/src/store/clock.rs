//! What the store remembers of the host's clock: when it last ran, so that a clock that has jumped ahead deletes
//! nothing, and the greatest id of rows that have left, so that ids never go back.

use rusqlite::{Connection, Transaction, params};

use crate::store::record::RecordId;

/// How far ahead of what the store has last seen a clock may be and be trusted, and how long a host then runs until it
/// is trusted all the same. In milliseconds.
pub const DAY: u64 = 24 * 60 * 60 * 1000;

/// What is kept in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// When a host last ran, by its clock.
    pub seen: Option<u64>,
    /// For how many milliseconds a host still has to run until its clock is trusted.
    pub doubt: u64,
}

impl Clock {
    /// What is to be kept now, after a host has run for `ran` since the last time.
    pub fn at(self, now: u64, ran: u64) -> Self {
        let doubt = match self.seen {
            Some(seen) if now > seen.saturating_add(DAY) => DAY,
            // What was doubted is over.
            Some(seen) if seen > now.saturating_add(DAY) => 0,
            _ => self.doubt.saturating_sub(ran),
        };
        Self { seen: Some(now), doubt }
    }
}

pub fn read(connection: &Connection) -> rusqlite::Result<Clock> {
    connection.query_row("SELECT seen, doubt FROM clock", [], |row| Ok(Clock { seen: row.get(0)?, doubt: row.get(1)? }))
}

pub fn write(connection: &Connection, clock: Clock) -> rusqlite::Result<()> {
    connection.execute("UPDATE clock SET seen = ?1, doubt = ?2", params![clock.seen, clock.doubt])?;
    Ok(())
}

/// Takes the time of the greatest id for the time when a host last ran, if that is not known: the version before did
/// not note it.
pub fn begin(connection: &Connection, last: RecordId) -> rusqlite::Result<()> {
    connection.execute("UPDATE clock SET seen = ?1 WHERE seen IS NULL", [last.at()])?;
    Ok(())
}

/// Notes the greatest id of rows that leave the file. Those that are in it say theirs themselves, so that an append
/// writes nothing but its rows.
pub fn note_left(transaction: &Transaction<'_>, id: Option<RecordId>) -> rusqlite::Result<()> {
    let Some(id) = id else { return Ok(()) };
    let sql = "UPDATE clock SET last_id = ?1 WHERE last_id IS NULL OR last_id < ?1";
    transaction.prepare_cached(sql)?.execute([id.bytes()])?;
    Ok(())
}

/// The greatest id that was ever written. Looks at all rows.
pub fn last_id(connection: &Connection) -> rusqlite::Result<Option<RecordId>> {
    let sql = "SELECT max(id) FROM (SELECT last_id AS id FROM clock UNION ALL SELECT max(id) FROM records)";
    let last = connection.query_row(sql, [], |row| row.get::<_, Option<[u8; 16]>>(0))?;
    Ok(last.map(RecordId::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_is_trusted_after_a_day_of_running() {
        let hour = DAY / 24;
        let first = Clock::default().at(5 * DAY, 0);
        assert_eq!(first, Clock { seen: Some(5 * DAY), doubt: 0 }, "there is nothing to compare it with");
        assert_eq!(first.at(6 * DAY, 0).doubt, 0);
        let ahead = first.at(45 * DAY, 0);
        assert_eq!(ahead, Clock { seen: Some(45 * DAY), doubt: DAY });
        // Starting again does not help.
        let again = ahead.at(45 * DAY + hour, hour).at(45 * DAY + hour, 0);
        assert_eq!(again.doubt, 23 * hour);
        let much = (0..23).fold(again, |clock, _| clock.at(clock.seen.unwrap_or_default() + hour, hour));
        assert_eq!(much.doubt, 0);
        // It was wrong, and is right again; and it is behind.
        assert_eq!(ahead.at(5 * DAY, 0), Clock { seen: Some(5 * DAY), doubt: 0 });
        assert_eq!(ahead.at(45 * DAY - hour, hour).doubt, 23 * hour);
    }
}
