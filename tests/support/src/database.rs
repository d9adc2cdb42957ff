//! A MariaDB or MySQL server of the test's own: the system's `mariadbd`, or one of those that `.ci/setup tests`
//! unpacks. Tests that need one are skipped where it is not there.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use mysql_async::{Conn, Error, OptsBuilder, Row, Value, prelude::Queryable};
use rustix::process::{Signal, geteuid};

use super::{
    certificates::{Authority, Issued},
    disk::Disk,
    loopback,
    process::{Process, shown},
    script::cache,
    skip::skipped,
    tenant::Folder,
    until, within,
};

/// Folders to look in after `PATH`, which does not have the folders of servers for every user.
const SERVER_PATHS: &str = "/usr/local/sbin:/usr/sbin";
/// The statements that create the server's own tables. Their name and place depend on the version.
const SYSTEM_TABLES: [&str; 4] = [
    "usr/share/mysql/mysql_system_tables.sql",
    "usr/share/mysql/mariadb_system_tables.sql",
    "usr/share/mariadb/mysql_system_tables.sql",
    "usr/share/mariadb/mariadb_system_tables.sql",
];

/// A user who may do everything in [`DATABASE`] and nothing else. `read_only` affects this user.
const USER: &str = "relay";
/// A user who may do everything everywhere.
const ADMINISTRATOR: &str = "administrator";
/// The password of both users. A URL must escape it.
const PASSWORD: &str = "p@ss:w/rd?%";
const PASSWORD_IN_URL: &str = "p%40ss%3Aw%2Frd%3F%25";
const DATABASE: &str = "records";

/// Little memory and small files. Everything else has its default, durability included.
const SETTINGS: [&str; 8] = [
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=1M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-temp-data-file-path=ibtmp1:4M:autoextend",
    "--innodb-autoextend-increment=1",
    "--innodb-undo-tablespaces=0",
];

/// Writes while the database is made need not survive a crash, so nothing waits for the disk.
const WHILE_MAKING: [&str; 4] =
    ["--bootstrap", "--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--debug-no-sync"];

/// What MySQL has in place of [`SETTINGS`]. What a statement writes is on the disk when it returns, as by default.
const MYSQL_SETTINGS: [&str; 5] = [
    "--innodb-buffer-pool-size=64M",
    "--performance-schema=OFF",
    "--mysqlx=OFF",
    "--skip-log-bin",
    "--secure-file-priv=NULL",
];
/// Where the libraries are that an unpacked server was built with, and what `.ci/setup tests` makes for MySQL: an empty
/// data folder.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const MYSQL_DATA: &str = "data";

/// Makes a test on each server of each of these functions.
#[macro_export]
macro_rules! on_each_server {
    ($($test:ident),* $(,)?) => {
        mod mariadb {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::database::Server::MariaDb).await;
            })*
        }

        mod mysql {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::database::Server::MySql).await;
            })*
        }
    };
}

/// The servers that records may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    MariaDb,
    /// The newest in Debian, with its plugins.
    NewMariaDb,
    MySql,
}

impl Server {
    /// Starts a new server with an empty database, if the program is there.
    ///
    /// The server ends with the thread that starts it. So call this from the test's own thread, not from a task that
    /// may move to another one.
    pub async fn start(self) -> Option<Database> {
        self.start_with(&[]).await
    }

    /// Starts a server with more arguments for its program, which go before those of its address.
    pub async fn start_with(self, arguments: &[&str]) -> Option<Database> {
        let folder = Folder::empty();
        let place = folder.path("data");
        self.start_in(place, folder, loopback().into(), arguments).await
    }

    /// Starts a server with TLS. It has an address of its own, and a certificate for that address.
    pub async fn start_tls(self, authority: &Authority) -> Option<Database> {
        let folder = Folder::empty();
        let address = IpAddr::from(loopback());
        let Issued { certificate, key } = authority.certificate(&address.to_string());
        folder.write("certificate.pem", certificate.pem());
        folder.write("key.pem", key.serialize_pem());
        let file = |option: &str, name: &str| format!("--{option}={}", folder.path(name).display());
        let (certificate, key) = (file("ssl-cert", "certificate.pem"), file("ssl-key", "key.pem"));
        let place = folder.path("data");
        self.start_in(place, folder, address, &[&certificate, &key]).await
    }

    /// Starts a server whose data are on a disk that can be filled.
    pub async fn start_on(self, disk: &Disk, arguments: &[&str]) -> Option<Database> {
        self.start_in(disk.path("data"), Folder::empty(), loopback().into(), arguments).await
    }

    async fn start_in(self, place: PathBuf, folder: Folder, address: IpAddr, more: &[&str]) -> Option<Database> {
        // Its own folder: a server that starts removes the temporary tables of all servers that share one.
        fs::create_dir(folder.path("temporary")).unwrap();
        let mut arguments = self.program()?;
        arguments.push(format!("--datadir={}", place.display()));
        arguments.push(format!("--tmpdir={}", folder.path("temporary").display()));
        if geteuid().is_root() {
            arguments.push("--user=root".to_owned());
        }
        let settings = if self == Self::MySql { &MYSQL_SETTINGS[..] } else { &SETTINGS };
        arguments.extend(settings.iter().chain(more).map(|argument| (*argument).to_owned()));
        match self {
            Self::MariaDb => make_data(&arguments, Path::new("/"), &place, &folder).await,
            Self::NewMariaDb => make_data(&arguments, &unpacked("mariadb"), &place, &folder).await,
            Self::MySql => {
                copy_data(&unpacked("mysql").join(MYSQL_DATA), &place);
                folder.write("made.sql", accounts());
                arguments.push(format!("--init-file={}", folder.path("made.sql").display()));
            }
        }
        let address = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
        arguments.push(format!("--bind-address={}", address.ip()));
        arguments.push(format!("--port={}", address.port()));
        arguments.push("--skip-name-resolve".to_owned());
        // What a server says of its socket is not true for all clients.
        let socket = folder.path("socket");
        arguments.push(format!("--socket={}", socket.display()));
        let process = spawn(&arguments);
        let mut database = Database { server: self, address, arguments, process, folder };
        database.answers().await;
        Some(database)
    }

    /// Bytes of a disk that its files fit on, with some room.
    pub fn size(self) -> usize {
        if self == Self::MySql { 260 << 20 } else { 100 << 20 }
    }

    /// How the program is started. The test is skipped without it.
    pub fn program(self) -> Option<Vec<String>> {
        match self {
            Self::MariaDb => Some(vec![mariadbd()?, "--no-defaults".to_owned()]),
            Self::NewMariaDb => {
                let root = unpacked("mariadb");
                let mut arguments = unpacked_program(&root, "mariadbd")?;
                arguments.extend(shared(&root, "mariadb"));
                arguments.push(format!("--plugin-dir={}", root.join("usr/lib/mysql/plugin").display()));
                Some(arguments)
            }
            Self::MySql => {
                let root = unpacked("mysql");
                let mut arguments = unpacked_program(&root, "mysqld")?;
                arguments.push(format!("--basedir={}", root.join("usr").display()));
                arguments.extend(shared(&root, "mysql"));
                Some(arguments)
            }
        }
    }
}

/// A server that ends with the test, even if the test is killed.
pub struct Database {
    pub server: Server,
    pub address: SocketAddr,
    /// The command line, to start it again.
    arguments: Vec<String>,
    process: Process,
    /// The server's folder, removed after the server has ended.
    folder: Folder,
}

impl Database {
    /// The path that it gives as that of its socket, where there is nothing.
    pub fn named_socket(&self) -> PathBuf {
        self.folder.path("socket")
    }

    /// Where its socket is.
    pub fn moved_socket(&self) -> PathBuf {
        self.folder.path("moved-socket")
    }

    /// A file of its data folder, such as a certificate that it has made for itself.
    pub fn data(&self, file: &str) -> PathBuf {
        self.folder.path("data").join(file)
    }

    pub fn url(&self) -> String {
        self.url_at(self.address)
    }

    /// The URL with another address, such as a proxy's.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("mysql://{USER}:{PASSWORD_IN_URL}@{address}/{DATABASE}")
    }

    /// Kills it at once. What it has not written yet is lost.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.end().await;
    }

    /// Stops it, and lets it write what it has.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.end().await;
        assert!(status.success(), "{status}: {}", self.process.log());
    }

    /// Starts it again after [`Database::kill`] or [`Database::stop`], at the same address and with the data it had.
    pub async fn restart(&mut self) {
        self.process = spawn(&self.arguments);
        self.answers().await;
    }

    /// Sets whether users other than administrators may only read.
    pub async fn read_only(&self, on: bool) {
        self.query(&format!("SET GLOBAL read_only = {on}")).await;
    }

    /// Runs a statement as the administrator, on a new connection. Returns the rows, with values as text.
    pub async fn query(&self, sql: &str) -> Vec<Vec<String>> {
        match self.try_query(ADMINISTRATOR, Some(DATABASE), sql).await {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The same without a database, which the statement may make.
    pub async fn query_anywhere(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_query(ADMINISTRATOR, None, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs a statement as the user in [`Database::url`].
    pub async fn query_as_user(&self, sql: &str) -> Result<Vec<Vec<String>>, Error> {
        self.try_query(USER, Some(DATABASE), sql).await
    }

    /// Connects as the user in [`Database::url`].
    pub async fn connect(&self) -> Result<Conn, Error> {
        within("a connection", Conn::new(self.options(USER, Some(DATABASE)))).await
    }

    fn options(&self, user: &str, database: Option<&str>) -> OptsBuilder {
        OptsBuilder::default()
            .ip_or_hostname(self.address.ip().to_string())
            .tcp_port(self.address.port())
            .user(Some(user))
            .pass(Some(PASSWORD))
            .db_name(database)
            .prefer_socket(false)
    }

    async fn try_query(&self, user: &str, database: Option<&str>, sql: &str) -> Result<Vec<Vec<String>>, Error> {
        let querying = async {
            let mut connection = Conn::new(self.options(user, database)).await?;
            let rows: Vec<Row> = connection.query(sql).await?;
            connection.disconnect().await?;
            Ok::<_, Error>(rows)
        };
        let rows = within(sql, querying).await?;
        Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect())
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    async fn answers(&mut self) {
        until("an answer of the database", async || {
            if let Some(status) = self.ended() {
                panic!("{status}: {}", self.process.log());
            }
            self.try_query(ADMINISTRATOR, Some(DATABASE), "SELECT 1").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        // It is reached over TCP alone, whatever it says.
        fs::rename(self.named_socket(), self.moved_socket()).unwrap();
    }
}

/// The folder of a server that `.ci/setup tests` unpacks.
fn unpacked(server: &str) -> PathBuf {
    cache("DATABASE_TOOLS", "databases").join(server)
}

/// How such a server's program is started: with the loader and the libraries that it was built with. The test is
/// skipped without it.
fn unpacked_program(root: &Path, name: &str) -> Option<Vec<String>> {
    let (program, libraries) = (root.join("usr/sbin").join(name), root.join(LIBRARIES).display().to_string());
    if !program.is_file() {
        return skipped(name);
    }
    let loader = format!("{libraries}/ld-linux-x86-64.so.2");
    let program = program.display().to_string();
    Some(vec![loader, "--library-path".to_owned(), libraries, program, "--no-defaults".to_owned()])
}

/// Where such a server finds its texts.
fn shared(root: &Path, name: &str) -> [String; 2] {
    let folder = root.join("usr/share").join(name);
    let folder = folder.display();
    [format!("--lc-messages-dir={folder}"), format!("--character-sets-dir={folder}/charsets")]
}

/// Copies a data folder, with everything in it.
fn copy_data(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-r").args([from, to]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

/// Finds MariaDB's program. The test is skipped without it.
fn mariadbd() -> Option<String> {
    let path = std::env::var("PATH").unwrap();
    let mut folders = path.split(':').chain(SERVER_PATHS.split(':'));
    let program = folders.find_map(|folder| Some(Path::new(folder).join("mariadbd")).filter(|path| path.is_file()));
    program.map_or_else(|| skipped("mariadbd"), |program| Some(program.to_str().unwrap().to_owned()))
}

/// Does what `mariadb-install-db` does, in far less time: without the help texts, and without a root user that has no
/// password. `root`: where the server's own files are.
async fn make_data(arguments: &[String], root: &Path, place: &Path, folder: &Folder) {
    let tables = SYSTEM_TABLES.iter().find_map(|file| fs::read_to_string(root.join(file)).ok()).unwrap();
    let sql = format!("CREATE DATABASE mysql;\nUSE mysql;\n{tables}\nFLUSH PRIVILEGES;\n{}", accounts());
    fs::create_dir(place).unwrap();
    folder.write("made.sql", sql);
    let mut command = Command::new(&arguments[0]);
    command.args(&arguments[1..]).args(WHILE_MAKING);
    command.stdin(File::open(folder.path("made.sql")).unwrap());
    let making = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = within("an empty database", making).await.unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

/// The statements that make the database and its two users, unless they are there.
fn accounts() -> String {
    let mut sql = format!("CREATE DATABASE IF NOT EXISTS {DATABASE};\n");
    let (own, all) = (format!("{DATABASE}.* TO {USER}"), format!("*.* TO {ADMINISTRATOR} WITH GRANT OPTION"));
    for (user, on) in [(USER, own), (ADMINISTRATOR, all)] {
        writeln!(sql, "CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON {on};").unwrap();
    }
    sql
}

fn spawn(arguments: &[String]) -> Process {
    // `setpriv` has the kernel kill the server when this process dies, however it dies.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(arguments);
    Process::spawn(command)
}

fn text(value: Value) -> String {
    match value {
        Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        value => value.as_sql(true),
    }
}
