//! A private PostgreSQL.

use std::env;
use std::fs;
use std::io;
use std::iter;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use super::process::{Failure, Process, find_program, free_ports, start_on};

/// Where Debian and Ubuntu keep the programs of each major version, outside `PATH`.
const VERSIONS: &str = "/usr/lib/postgresql";

/// What makes a server fast, small and private, at the price of everything that keeps data safe.
const SETTINGS: [(&str, &str); 8] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "16MB"),
    // Files in the data folder, which go with it; the default leaves them to the system when killed.
    ("dynamic_shared_memory_type", "mmap"),
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("lc_messages", "C"),
];

/// A `postgres` of this test alone, with the database and superuser `postgres` and no password.
///
/// PostgreSQL refuses to run as root: for root it runs as the system's user `postgres`.
#[derive(Debug)]
pub struct PostgresServer {
    programs: Programs,
    settings: Vec<(String, String)>,
    port: u16,
    // Before the folder: the process ends while its folder still exists.
    process: Option<Process>,
    home: TempDir,
}

impl PostgresServer {
    /// Starts a server.
    ///
    /// # Panics
    ///
    /// When PostgreSQL is not installed or does not come up.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more settings, such as `[("max_connections", "10")]`.
    ///
    /// # Panics
    ///
    /// When PostgreSQL is not installed or does not come up.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let programs = Programs::find();
        let settings: Vec<_> = SETTINGS
            .iter()
            .chain(settings)
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let home =
            programs.new_home().unwrap_or_else(|error| panic!("no temporary folder for PostgreSQL: {error}"));
        programs.initdb(home.path()).unwrap_or_else(|error| panic!("`initdb` failed: {error}"));
        let (process, port) = start_on(free_ports(), |port| programs.launch(port, &settings, home.path()))
            .unwrap_or_else(|failure| panic!("PostgreSQL did not start: {failure}"));
        Self { programs, settings, port, process: Some(process), home }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address in the form that clients take, `postgres://postgres@127.0.0.1:port/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs SQL with `psql`: the rows with `|` between their columns, or what `psql` complained of.
    pub fn psql(&self, sql: &str) -> Result<String, String> {
        let mut command = self.programs.command("psql", self.home.path());
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).args(["-d", &self.url(), "-c", sql]);
        output(&mut command)
    }

    /// From now on everybody but `postgres` needs a password, as soon as the server has read its rules.
    ///
    /// # Panics
    ///
    /// When the rules cannot be written.
    pub fn ask_for_passwords(&self) {
        let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";
        let write = format!(
            "do $$ begin execute format('copy (select %L) to %L', '{rules}', current_setting('hba_file')); end $$"
        );
        // `copy` would write the line break as `\\n`.
        let write = write.replace("copy (select %L)", "copy (select unnest(string_to_array(%L, chr(10))))");
        self.psql(&write).unwrap();
        self.psql("select pg_reload_conf()").unwrap();
    }

    /// Writes a file of the server's own into its data folder, which nobody else may read.
    pub fn write_file(&self, name: &str, text: &str) {
        let path = data(self.home.path()).join(name);
        let write = || {
            fs::write(&path, "")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            fs::write(&path, text)?;
            match self.programs.user {
                Some(User { uid, gid }) => chown(&path, Some(uid), Some(gid)),
                None => Ok(()),
            }
        };
        write().unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// Creates an extension in the database.
    ///
    /// # Panics
    ///
    /// When it cannot be created; the message names the package that holds it.
    pub fn create_extension(&self, name: &str) {
        if let Err(error) = self.psql(&format!("create extension {name}")) {
            let major = self.programs.major();
            panic!(
                "no extension `{name}`: install the package `postgresql-{major}-{name}`, or let \
                 `./tests/run` do so: {error}"
            );
        }
    }

    /// Kills the server: its connections are closed at once, without a word.
    ///
    /// After [`PostgresServer::restart`] it recovers, as from a crash, and may have lost the commits of
    /// its last second: a test that needs them starts it with `("synchronous_commit", "on")`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills the server if it runs, and starts it again on the same port with the same data.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        let (process, _) = start_on(iter::repeat(self.port), |port| {
            self.programs.launch(port, &self.settings, self.home.path())
        })
        .unwrap_or_else(|failure| panic!("PostgreSQL did not start again: {failure}"));
        self.process = Some(process);
    }

    /// Makes the server hang: it accepts connections and bytes, and answers nothing.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Undoes [`PostgresServer::pause`]; what was sent meanwhile is answered.
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }
}

/// The installed programs of one version, and the user who runs them.
#[derive(Debug)]
struct Programs {
    folder: PathBuf,
    user: Option<User>,
}

#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl Programs {
    fn find() -> Self {
        let complete =
            |folder: &PathBuf| ["postgres", "initdb", "psql"].iter().all(|name| folder.join(name).is_file());
        // A link may stand in `PATH`, without the programs that stand beside its target.
        let in_path =
            find_program("postgres").and_then(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()));
        let folder = in_path
            .filter(complete)
            .or_else(|| installed_versions().into_iter().rev().find(complete))
            .unwrap_or_else(|| {
                panic!(
                    "PostgreSQL is not installed: install the package `postgresql`, or let \
                     `./tests/run` do so"
                )
            });
        let user = geteuid().is_root().then(|| {
            system_user("postgres").unwrap_or_else(|| {
                panic!(
                    "PostgreSQL does not run as root, and the user `postgres` does not exist: \
                     install the package `postgresql`, or let `./tests/run` do so"
                )
            })
        });
        Self { folder, user }
    }

    /// A command that runs one of the programs, told nothing by the environment of the tests.
    fn command(&self, program: &str, home: &Path) -> Command {
        let mut command = Command::new(self.folder.join(program));
        // The user may not enter the folder that the tests run in.
        command.current_dir(home).env("LC_ALL", "C");
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn new_home(&self) -> io::Result<TempDir> {
        let home = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        if let Some(User { uid, gid }) = self.user {
            chown(home.path(), Some(uid), Some(gid))?;
        }
        Ok(home)
    }

    fn initdb(&self, home: &Path) -> Result<String, String> {
        let mut command = self.command("initdb", home);
        command.arg("--pgdata").arg(data(home));
        command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        output(&mut command)
    }

    fn launch(&self, port: u16, settings: &[(String, String)], home: &Path) -> Result<Process, Failure> {
        let mut command = self.command("postgres", home);
        command.arg("-D").arg(data(home)).arg("-p").arg(port.to_string());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let status = data(home).join("postmaster.pid");
        Process::start(&mut command, home, Signal::QUIT, |pid| {
            let status = fs::read_to_string(&status).unwrap_or_default();
            let mut lines = status.lines().map(str::trim);
            lines.next() == Some(pid.to_string().as_str()) && lines.nth(6) == Some("ready")
        })
    }

    /// The major version, which the names of the packages of extensions hold.
    fn major(&self) -> String {
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        let version = output(Command::new(self.folder.join("postgres")).arg("--version"));
        let number = version.ok().and_then(|version| {
            let number = version.split_whitespace().nth(2)?;
            Some(number.split('.').next()?.to_owned())
        });
        number.unwrap_or_else(|| "<major version>".to_owned())
    }
}

fn data(home: &Path) -> PathBuf {
    home.join("data")
}

/// The folders of programs, by version.
fn installed_versions() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(VERSIONS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|version| {
            let major = version.file_name().to_str()?.parse().ok()?;
            Some((major, version.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().map(|(_, folder)| folder).collect()
}

fn system_user(name: &str) -> Option<User> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        // name:password:uid:gid:…
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

/// What the command prints, or why it failed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{command:?} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}
