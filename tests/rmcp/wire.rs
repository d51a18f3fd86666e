//! Bytes instead of types: what a client would read from the pipe.

use rmcp::ServerHandler;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};

use crate::fixture::{Generation, serve};

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
