//! What the guards share: finding programs and ports, starting a server process, ending it for certain.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::iter;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Runs on end of input, so when the process that holds the other end is gone, however it went.
///
/// Drop never runs after an abort, `process::exit`, Ctrl-C or for a guard in a `static`.
const WATCH: &str = r#"
read -r _
kill -"$1" "$2"
kill -CONT "$2"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 "$2" || break
    sleep 0.1
done
kill -KILL "$2"
rm -rf -- "$3"
"#;

/// How often, and how many times, a state of a server is asked for: 30 seconds at least.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const POLLS: u32 = 3_000;

const PORTS_TRIED: usize = 20;

/// Below the ports that systems give to outgoing connections (from 32768, or 49152). In that range a
/// client which reconnects in a loop can take the port of a killed server, or even connect to itself.
const FIRST_PORT: u16 = 15_000;
const PORT_COUNT: u16 = 15_000;

/// Why a server did not come up.
#[derive(Debug)]
pub enum Failure {
    PortTaken,
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortTaken => formatter.write_str("its port is taken"),
            Self::Other(reason) => formatter.write_str(reason),
        }
    }
}

/// A running server process, killed and reaped on drop together with its children.
#[derive(Debug)]
pub struct Process {
    child: Child,
    watch: Child,
    stop: Signal,
}

impl Process {
    /// Starts `command`, with its output in the file `log` of `home`, and waits until `ready` says so of
    /// the process with that id.
    ///
    /// `stop` is the signal that ends it without delay.
    pub fn start(
        command: &mut Command,
        home: &Path,
        stop: Signal,
        mut ready: impl FnMut(u32) -> bool,
    ) -> Result<Self, Failure> {
        let log = home.join("log");
        let mut process = Self::spawn(command, home, &log, stop)
            .map_err(|error| Failure::Other(format!("cannot start {command:?}: {error}")))?;
        for _ in 0..POLLS {
            if let Ok(Some(status)) = process.child.try_wait() {
                let log = read_log(&log);
                return Err(if log.contains("Address already in use") {
                    Failure::PortTaken
                } else {
                    Failure::Other(format!("{command:?} ended with {status}:\n{log}"))
                });
            }
            if ready(process.child.id()) {
                return Ok(process);
            }
            thread::sleep(POLL_INTERVAL);
        }
        let log = read_log(&log);
        Err(Failure::Other(format!("{command:?} runs but does not answer:\n{log}")))
    }

    /// Stops the process and its children where they stand; their connections stay open.
    pub fn pause(&self) {
        let pid = Pid::from_child(&self.child);
        if kill_process(pid, Signal::STOP).is_ok() {
            // The signal is sent, not yet obeyed: without this, one more command could be answered.
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
        }
        signal_children(pid, Signal::STOP);
    }

    /// Undoes [`Process::pause`].
    pub fn resume(&self) {
        let pid = Pid::from_child(&self.child);
        signal_children(pid, Signal::CONT);
        let _ = kill_process(pid, Signal::CONT);
    }

    fn spawn(command: &mut Command, home: &Path, log: &Path, stop: Signal) -> io::Result<Self> {
        let log = File::create(log)?;
        // A group of its own: Ctrl-C is for the tests; the watch ends the server after them.
        let mut child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        let watch = Command::new("/bin/sh")
            .args(["-c", WATCH, "watch"])
            .arg(stop.as_raw().to_string())
            .arg(child.id().to_string())
            .arg(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match watch {
            Ok(watch) => Ok(Self { child, watch, stop }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // First, so that it never signals a process id which is free for reuse.
        end(&mut self.watch);
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }

        let pid = Pid::from_child(&self.child);
        // Stopped, it starts no further children. They go first and without a word to their clients;
        // then PostgreSQL, told to quit, still frees its shared memory, which outlives a killed one.
        self.pause();
        signal_children(pid, Signal::KILL);
        let _ = kill_process(pid, self.stop);
        let _ = kill_process(pid, Signal::CONT);
        if !eventually(|| !matches!(self.child.try_wait(), Ok(None))) {
            end(&mut self.child);
        }
    }
}

/// The program in the first of the folders of `PATH` that has it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Starts a server on the first of `ports` that nobody took in the meantime.
pub fn start_on(
    ports: impl Iterator<Item = u16>,
    mut start: impl FnMut(u16) -> Result<Process, Failure>,
) -> Result<(Process, u16), Failure> {
    for port in ports.take(PORTS_TRIED) {
        match start(port) {
            Ok(process) => return Ok((process, port)),
            Err(Failure::PortTaken) => thread::sleep(POLL_INTERVAL),
            Err(other) => return Err(other),
        }
    }
    Err(Failure::PortTaken)
}

/// Loopback ports that nobody listens on, never the same one twice in this process.
pub fn free_ports() -> impl Iterator<Item = u16> {
    iter::repeat_with(free_port)
}

/// Asks until the answer is yes, for a bounded time; whether it was.
pub fn eventually(mut check: impl FnMut() -> bool) -> bool {
    (0..POLLS).any(|_| {
        let yes = check();
        if !yes {
            thread::sleep(POLL_INTERVAL);
        }
        yes
    })
}

fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        // The randomly keyed hasher of std: processes that run side by side begin apart.
        let seed = RandomState::new().hash_one(0) % u64::from(PORT_COUNT);
        AtomicU16::new(u16::try_from(seed).unwrap_or_default())
    });
    loop {
        let port = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORT_COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn signal_children(parent: Pid, signal: Signal) {
    for child in children(parent) {
        let _ = kill_process(child, signal);
    }
}

/// The children of `parent`, from `/proc`. Where there is none, those of a killed PostgreSQL end by
/// themselves as soon as they notice.
fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let id = process.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            // "id (name) state parent …", where the name may hold anything.
            let (_, fields) = stat.rsplit_once(')')?;
            let its_parent = fields.split_whitespace().nth(1)?.parse().ok()?;
            (Pid::from_raw(its_parent)? == parent).then(|| Pid::from_raw(id)).flatten()
        })
        .collect()
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn read_log(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(no log: {error})"),
    }
}
