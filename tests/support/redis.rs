//! A private Redis.

use std::fs;
use std::io::{self, Read, Write};
use std::iter;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Failure, Process, find_program, free_ports, start_on};

/// A `redis-server` of this test alone, empty at the start, without persistence.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    arguments: Vec<String>,
    port: u16,
    /// The port for TLS, and the folder of what the server needs for it.
    tls: Option<(u16, TempDir)>,
    // Before the folder: the process ends while its folder still exists.
    process: Option<Process>,
    home: TempDir,
}

impl RedisServer {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// When Redis is not installed or does not come up.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments, such as `["--maxmemory", "2mb"]`.
    ///
    /// Not with a password, which would keep the guard out too: set one later, by `CONFIG SET`.
    ///
    /// # Panics
    ///
    /// When Redis is not installed or does not come up.
    pub fn start_with(arguments: &[&str]) -> Self {
        let program = find_program("redis-server").unwrap_or_else(|| {
            panic!(
                "`redis-server` is not installed: install the package `redis-server`, or let \
                 `./tests/run` do so"
            )
        });
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let home = tempfile::Builder::new()
            .prefix("redis-")
            .tempdir()
            .unwrap_or_else(|error| panic!("no temporary folder for Redis: {error}"));
        let (process, port) = start_on(free_ports(), |port| launch(&program, port, &arguments, home.path()))
            .unwrap_or_else(|failure| panic!("Redis did not start: {failure}"));
        Self { program, arguments, port, tls: None, process: Some(process), home }
    }

    /// Starts a server that speaks TLS on a second port, where it shows this certificate, in PEM.
    ///
    /// # Panics
    ///
    /// When Redis is not installed or does not come up.
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = files.path().join(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (certificate_file, key_file) = (file("certificate.pem", certificate), file("key.pem", key));
        let port = free_ports().next().unwrap();
        let mut server = Self::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &certificate_file,
            "--tls-key-file",
            &key_file,
            "--tls-ca-cert-file",
            &certificate_file,
            "--tls-auth-clients",
            "no",
        ]);
        server.tls = Some((port, files));
        server
    }

    /// The address over TLS of a server that [speaks it](Self::start_with_tls).
    pub fn tls_url(&self) -> Option<String> {
        self.tls.as_ref().map(|(port, _)| format!("rediss://localhost:{port}"))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address in the form that clients take, `redis://127.0.0.1:port/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A connection beside those of what is tested.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn connection(&self) -> ::redis::aio::MultiplexedConnection {
        let client = ::redis::Client::open(self.url()).unwrap_or_else(|error| panic!("no address: {error}"));
        let connection = client.get_multiplexed_async_connection().await;
        connection.unwrap_or_else(|error| panic!("Redis does not answer: {error}"))
    }

    /// Kills the server: its data is lost and its connections are closed at once.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills the server if it runs, and starts it anew, empty, on the same port.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        let (process, _) = start_on(iter::repeat(self.port), |port| {
            launch(&self.program, port, &self.arguments, self.home.path())
        })
        .unwrap_or_else(|failure| panic!("Redis did not start again: {failure}"));
        self.process = Some(process);
    }

    /// Makes the server hang: it accepts connections and bytes, and answers nothing.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Undoes [`RedisServer::pause`]; what was sent meanwhile is answered.
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }
}

fn launch(program: &Path, port: u16, arguments: &[String], home: &Path) -> Result<Process, Failure> {
    let mut command = Command::new(program);
    command
        .env("LC_ALL", "C")
        .arg("--port")
        .arg(port.to_string())
        .args(["--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(home)
        .args(arguments);
    Process::start(&mut command, home, Signal::KILL, |pid| answers(port, pid).unwrap_or(false))
}

/// Whether a server with this process id answers `PING` on `port`; another one's answer does not count.
fn answers(port: u16, pid: u32) -> io::Result<bool> {
    let wait = Duration::from_millis(200);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    stream.write_all(b"INFO server\r\nPING\r\nQUIT\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains("+PONG\r\n") && answer.contains(&format!("\nprocess_id:{pid}\r\n")))
}
