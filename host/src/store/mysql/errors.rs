//! What an error of MySQL means: whose fault it is, and what to do.
//!
//! The numbers are those of the servers' manuals (MySQL's error message reference, MariaDB's error codes).

use std::error::Error as _;

use mysql_async::{DriverError, Error, IoError, ServerError};

/// The login is refused: wrong user, password or host; an expired password; a locked account (MySQL's and MariaDB's).
const REFUSED_LOGINS: [u16; 7] = [1045, 1698, 1820, 1862, 3118, 3955, 4151];
/// Errors without a class of their own (SQLSTATE HY000 and HY001) that pass, or that somebody has to mend on the
/// server. None of them is a row's fault.
const OF_SERVER: [u16; 76] = [
    1005, 1015, 1016, 1017, 1021, 1023, 1024, 1026, 1028, 1030, 1034, 1035, 1036, 1037, 1038, 1041, 1105, 1114, 1119,
    1129, 1130, 1180, 1181, 1193, 1194, 1195, 1205, 1206, 1207, 1223, 1243, 1290, 1296, 1297, 1412, 1436, 1449, 1461,
    1598, 1615, 1637, 1661, 1662, 1663, 1664, 1665, 1666, 1667, 1668, 1712, 1785, 1786, 1787, 1788, 1814, 1815, 1820,
    1836, 1862, 1874, 1877, 1878, 1881, 3024, 3032, 3098, 3100, 3118, 3159, 3168, 3169, 3185, 3572, 3955, 4151, 4031,
];
/// Errors of a row, whatever their class: a trigger's own (SIGNAL, RESIGNAL, or a SELECT INTO that finds two), and a
/// row that is too large.
const OF_ROW: [u16; 4] = [1118, 1172, 1644, 1645];
/// One packet or one transaction has too many bytes for the server.
const TOO_LARGE: [u16; 2] = [1153, 1197];

/// What a server says without the values that it repeats, such as those of a key that is there twice.
pub fn without_values(error: &Error) -> String {
    const REPEATS: [u16; 4] = [1062, 1264, 1292, 1366];
    match error {
        Error::Server(ServerError { code, message, .. }) if REPEATS.contains(code) => {
            let place = message.find(" for ").and_then(|at| message.get(at..)).unwrap_or_default();
            format!("MySQL: refused{place} ({code})")
        }
        error => explain(error),
    }
}

/// Whether rows are at fault. What isn't known to be the server's is a row's, so that it holds up nobody: a trigger, a
/// partition that is missing, a column that wants a value.
pub fn is_of_row(error: &Error) -> bool {
    match error {
        Error::Driver(DriverError::PacketTooLarge) => true,
        Error::Server(server) => is_of_row_server(server),
        _ => false,
    }
}

fn is_of_row_server(ServerError { code, state, .. }: &ServerError) -> bool {
    // Of the system, of a client library, and of proxies in between (ProxySQL, MaxScale).
    let is_foreign = matches!(code, ..1000 | 2000..3000 | 9000..9100);
    // Connections, transaction states, logins, rollbacks, statements and rights, operators, interruptions, XA.
    let of_server = matches!(state.get(..2).unwrap_or_default(), "08" | "25" | "28" | "40" | "42" | "57" | "70" | "XA");
    // A trigger's own (SIGNAL), whatever number it gives.
    let is_signal = state.starts_with("45") || OF_ROW.contains(code);
    is_signal || TOO_LARGE.contains(code) || !is_foreign && !of_server && !OF_SERVER.contains(code)
}

pub fn is_refused_login(error: &Error) -> bool {
    matches!(error, Error::Server(server) if REFUSED_LOGINS.contains(&server.code))
}

/// Says in one sentence what is wrong, and what to do about it where that is known.
pub fn explain(error: &Error) -> String {
    let said = match error {
        Error::Server(server) => return explain_server(server),
        Error::Driver(DriverError::UnknownAuthPlugin { name }) => format!(
            "the account logs in by {name}, which this program cannot; have it use caching_sha2_password, \
             mysql_native_password, ed25519 or parsec"
        ),
        Error::Driver(DriverError::CleartextPluginDisabled) => {
            "the account sends its password in clear text, which this program does not".into()
        }
        Error::Driver(DriverError::MysqlOldPasswordDisabled) => {
            "the account's password has a form from before MySQL 4.1; set it anew".into()
        }
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            "the server has no TLS; set it up there, or write ssl-mode=DISABLED".into()
        }
        Error::Io(IoError::Tls(tls)) => explain_tls(&tls.to_string()),
        Error::Io(IoError::Io(io)) if io.kind() == std::io::ErrorKind::TimedOut => "it has not answered in time".into(),
        Error::Io(IoError::Io(io)) => match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => explain_tls(&tls.to_string()),
            None => io.to_string(),
        },
        // The driver's own words around an error say nothing more.
        other => other.source().map_or_else(|| other.to_string(), ToString::to_string),
    };
    format!("MySQL: {said}")
}

fn explain_server(ServerError { code, message, .. }: &ServerError) -> String {
    let to_do = match code {
        1045 | 1698 => "it refuses the login; look at the user, the password, and from where the account may come",
        1820 | 1862 => "the account's password has expired; set it anew",
        3118 | 3955 | 4151 => "the account is locked",
        1044 | 1142 | 1143 | 1227 | 1370 => {
            "the account lacks a right; it needs SELECT, INSERT, UPDATE and DELETE on the database, and CREATE, ALTER, \
             INDEX and DROP while its tables are brought up to date"
        }
        1049 => "there is no such database; create it",
        1040 => "it has as many connections as max_connections allows",
        1203 | 1226 => "the account has as many connections, or has asked as much, as it may",
        1461 => "it has as many prepared statements as max_prepared_stmt_count allows",
        1104 => {
            "it refuses statements that may look at many rows (sql_big_selects, max_join_size); let the account do so"
        }
        1792 => "its transactions only read (transaction_read_only)",
        1290 | 1836 => "it only reads (read_only, super_read_only), as a replica or an old primary does",
        3032 => "it is offline (offline_mode)",
        1053 => "it is shutting down",
        1153 => "a statement has more bytes than max_allowed_packet allows",
        1197 => "a transaction has more bytes than max_binlog_cache_size allows",
        1114 | 1021 => "its disk, or the table, is full",
        3159 => "it takes connections with TLS only; write ssl-mode=REQUIRED or VERIFY_IDENTITY",
        1129 | 1130 => "it does not let this machine in",
        _ => return format!("MySQL: {message} ({code})"),
    };
    format!("MySQL: {to_do}: {message} ({code})")
}

fn explain_tls(said: &str) -> String {
    let to_do = match said {
        _ if said.contains("UnsupportedCertVersion") => {
            "the server's certificate has version 1, which cannot be used; give it one of version 3, or write \
             ssl-mode=DISABLED"
        }
        _ if said.contains("UnknownIssuer") || said.contains("CaUsedAsEndEntity") => {
            "nobody that this machine trusts vouches for the server's certificate; have the machine trust its authority, \
             or write ssl-mode=REQUIRED to check nothing"
        }
        _ if said.contains("not valid for name") || said.contains("NotValidForName") => {
            "the server's certificate is for another name, or names none but its subject's; use a host it names, give \
             it that name, or write ssl-mode=REQUIRED to check nothing"
        }
        _ if said.contains("Expired") || said.contains("expired") => "the server's certificate has expired; renew it",
        _ => "no TLS",
    };
    format!("{to_do}: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, state: &str) -> Error {
        Error::Server(ServerError { code, state: state.into(), message: "m".into() })
    }

    #[test]
    fn what_is_not_known_to_be_the_servers_fault_is_a_rows() {
        for (code, state) in [
            (1062, "23000"),
            (1118, "42000"),
            (1153, "08S01"),
            (1197, "HY000"),
            (1264, "22003"),
            (1364, "HY000"),
            (1366, "HY000"),
            (1526, "HY000"),
            (1644, "45000"),
            (1644, "42000"),
            (9001, "45000"),
            (1172, "42000"),
            (3819, "HY000"),
            (4025, "23000"),
        ] {
            assert!(is_of_row(&server(code, state)), "{code}");
        }
        for (code, state) in [
            (3, "HY000"),
            (2013, "HY000"),
            (9001, "HY000"),
            (1040, "08004"),
            (1045, "28000"),
            (1047, "08S01"),
            (1053, "08S01"),
            (1054, "42S22"),
            (1142, "42000"),
            (1146, "42S02"),
            (1205, "HY000"),
            (1213, "40001"),
            (1290, "HY000"),
            (1317, "70100"),
            (1461, "42000"),
            (1792, "25006"),
            (1836, "HY000"),
            (1927, "70100"),
            (3032, "HY000"),
        ] {
            assert!(!is_of_row(&server(code, state)), "{code}");
        }
        assert!(!is_of_row(&Error::Driver(DriverError::ConnectionClosed)));
    }

    #[test]
    fn an_error_says_what_to_do() {
        assert!(explain(&server(1045, "28000")).starts_with("MySQL: it refuses the login"));
        for (code, named) in [
            (1040, "max_connections"),
            (1104, "sql_big_selects"),
            (1153, "max_allowed_packet"),
            (1197, "max_binlog_cache_size"),
            (1461, "max_prepared_stmt_count"),
            (1792, "transaction_read_only"),
        ] {
            assert!(explain(&server(code, "HY000")).contains(named), "{code}");
        }
        assert_eq!(explain(&server(5555, "HY000")), "MySQL: m (5555)");
        let message = "Duplicate entry 'log-secret' for key 'by_data'".into();
        let twice = Error::Server(ServerError { code: 1062, state: "23000".into(), message });
        assert_eq!(without_values(&twice), "MySQL: refused for key 'by_data' (1062)");
        assert!(explain(&Error::Driver(DriverError::NoClientSslFlagFromServer)).contains("ssl-mode=DISABLED"));
    }
}
