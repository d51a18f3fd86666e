//! Bytes instead of types: what a client would read from the pipe.

use rmcp::ServerHandler;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};

use crate::fixture::{Generation, Http, serve};

/// A connection in memory, a message a line.
pub(crate) struct Wire {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    write: WriteHalf<DuplexStream>,
    generation: Generation,
    next_id: u64,
}

impl Wire {
    /// Connects, and returns what the server said in the handshake, if there is one.
    pub(crate) async fn open<H: ServerHandler>(server: H, generation: Generation) -> (Self, Option<String>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(server, far));
        let (read, write) = tokio::io::split(near);
        let mut wire = Self { lines: BufReader::new(read).lines(), write, generation, next_id: 1 };
        if generation == Generation::Modern {
            return (wire, None);
        }
        let handshake = json!({
            "protocolVersion": generation.version(),
            "capabilities": capabilities(),
            "clientInfo": {"name": "wire", "version": "1"},
        });
        let said = wire.ask("initialize", &handshake).await;
        wire.tell("notifications/initialized", &json!({})).await;
        (wire, Some(said))
    }

    /// Sends a request and returns the next line from the server.
    pub(crate) async fn ask(&mut self, method: &str, params: &Value) -> String {
        self.send_request(method, params).await;
        self.receive().await
    }

    pub(crate) async fn send_request(&mut self, method: &str, params: &Value) {
        let mut params = params.clone();
        if let (Generation::Modern, Some(params)) = (self.generation, params.as_object_mut()) {
            params.insert("_meta".to_owned(), meta());
        }
        let request = json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        self.next_id += 1;
        self.send(&request.to_string()).await;
    }

    /// Sends a notification.
    pub(crate) async fn tell(&mut self, method: &str, params: &Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).await;
    }

    pub(crate) async fn send(&mut self, line: &str) {
        self.write.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> String {
        self.lines.next_line().await.unwrap().expect("the server answers")
    }
}

/// What a request of 2026-07-28 says of itself.
pub(crate) fn meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": capabilities(),
    })
}

fn capabilities() -> Value {
    json!({"extensions": {"io.modelcontextprotocol/tasks": {}}})
}

/// An answer over HTTP as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Posted {
    pub(crate) status: u16,
    pub(crate) session: Option<String>,
    pub(crate) body: String,
}

/// Posts a message with these header fields more than it must have.
pub(crate) async fn post(http: &Http, headers: &[(&str, &str)], body: &str) -> Posted {
    let request = reqwest::Client::new()
        .post(&http.url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_owned());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.unwrap();
    let session = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
    Posted { status: response.status().as_u16(), session, body: response.text().await.unwrap() }
}

/// Opens a session of 2025-11-25.
pub(crate) async fn open_session(http: &Http, headers: &[(&str, &str)]) -> String {
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "wire", "version": "1"},
    }});
    let session = post(http, headers, &hello.to_string()).await.session.expect("a session");
    let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    post(http, &[("mcp-session-id", &session)], &ready).await;
    session
}
