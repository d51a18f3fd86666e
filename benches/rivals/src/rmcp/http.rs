//! A server without sessions that answers JSON, and clients that cost next to nothing: ready bytes over
//! connections that stay open.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
};

use crate::measure::Stopwatch;

const CONNECTIONS: u64 = 16;
const BODY: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello world"}}}"#;

/// A server on a free loopback port, and open connections to it.
pub struct Site<'a> {
    runtime: &'a Runtime,
    clients: Vec<Client>,
}

struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl<'a> Site<'a> {
    pub fn open<H: ServerHandler + Clone>(runtime: &'a Runtime, handler: H) -> Result<Self> {
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let config = StreamableHttpServerConfig::default()
                .with_legacy_session_mode(false)
                .with_json_response(true);
            let sessions = Arc::new(LocalSessionManager::default());
            let service = StreamableHttpService::new(move || Ok(handler.clone()), sessions, config);
            runtime.spawn(mcp_perf::rmcp::serve(listener, service));
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS {
                clients.push(Client::connect(address).await?);
            }
            Ok(Self { runtime, clients })
        })
    }

    /// So many calls of the tool, over 16 connections.
    pub fn call(&mut self, count: u64) -> Result<Duration> {
        let stopwatch = Stopwatch::start();
        let clients = std::mem::take(&mut self.clients);
        self.clients = self.runtime.block_on(async {
            let mut callers = JoinSet::new();
            for (caller, client) in (0..).zip(clients) {
                callers.spawn(client.calls((count + caller) / CONNECTIONS));
            }
            callers.join_all().await.into_iter().collect::<Result<_>>()
        })?;
        Ok(stopwatch.elapsed())
    }
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: Vec::with_capacity(4096) })
    }

    async fn calls(mut self, count: u64) -> Result<Self> {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\nmcp-protocol-version: 2025-11-25\r\n\
             content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        for _ in 0..count {
            self.stream.write_all(request.as_bytes()).await?;
            self.read_answer().await?;
        }
        Ok(self)
    }

    async fn read_answer(&mut self) -> Result<()> {
        self.answer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server closed the connection");
            let Some(head) = find(&self.answer, b"\r\n\r\n") else { continue };
            let length = content_length(&self.answer[..head])?;
            if self.answer.len() >= head + 4 + length {
                ensure!(self.answer.starts_with(b"HTTP/1.1 200 "), "{}", self.text());
                ensure!(find(&self.answer, br#""text":"hello world""#).is_some(), "{}", self.text());
                return Ok(());
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    let field = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    Ok(field.with_context(|| format!("no length in {head}"))?.parse()?)
}
