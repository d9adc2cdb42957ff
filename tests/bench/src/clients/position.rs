//! A channel's position, as a client that wants to resume knows it.

use std::{
    fmt::{self, Display},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::failure::{Context, Failure};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    epoch: String,
    offset: u64,
}

impl Position {
    /// Asks for a channel's newest position, which its history over HTTP tells.
    pub fn ask(address: SocketAddr, path: &str) -> Result<Self, Failure> {
        let mut socket = TcpStream::connect(address).context("the history")?;
        socket.set_read_timeout(Some(PATIENCE)).context("the history")?;
        let request = format!("GET {path}?limit=1 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).context("the history")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).context("the history")?;
        Self::find(&answer).with_context(|| format!("no position in {answer:?}"))
    }

    /// The position this many publications later.
    pub fn after(&self, publications: u32) -> Self {
        Self { epoch: self.epoch.clone(), offset: self.offset + u64::from(publications) }
    }

    fn find(answer: &str) -> Option<Self> {
        let (_, behind) = answer.split_once(r#"{"epoch":""#)?;
        let (epoch, behind) = behind.split_once(r#"","offset":"#)?;
        let digits = behind.split(|character: char| !character.is_ascii_digit()).next()?;
        Some(Self { epoch: epoch.to_owned(), offset: digits.parse().ok()? })
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_in_the_answer() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n{\"epoch\":\"1a2b\",\"offset\":17,\"publications\":[]}";
        let position = Position::find(answer).unwrap();
        assert_eq!(position.after(3).to_string(), "1a2b:20");
        assert_eq!(Position::find("HTTP/1.1 404 Not Found\r\n\r\n"), None);
    }
}
