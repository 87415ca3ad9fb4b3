//! The access log: one JSON line a request, with the columns of Azure's `AmlOnlineEndpointTrafficLog`.
//!
//! Workers hand finished lines to one writer thread through a bounded channel. A log that cannot be written as fast as
//! requests come loses lines, which are counted; it never delays a request.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use prometheus::IntCounter;
use serde::Serialize;

/// Lines that may wait for the writer.
const WAITING: usize = 8192;

/// One request. Times are in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the columns are Azure's; the struct's page links to them")]
pub struct Line<'a> {
    pub time_generated: String,
    pub operation_name: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub endpoint_name: &'a str,
    pub deployment_name: &'a str,
    pub protocol: &'a str,
    pub response_code: u16,
    pub response_code_reason: &'a str,
    pub model_status_code: Option<u16>,
    pub model_status_reason: Option<&'a str>,
    pub request_payload_size: u64,
    pub response_payload_size: u64,
    pub user_agent: &'a str,
    #[serde(rename = "XRequestId")]
    pub x_request_id: &'a str,
    #[serde(rename = "XMSClientRequestId")]
    pub x_ms_client_request_id: &'a str,
    pub auth_type: &'a str,
    pub identity_data: &'a str,
    pub total_duration_ms: f64,
    /// Not Azure's: how long it waited for a replica.
    pub queue_duration_ms: f64,
    pub request_duration_ms: Option<f64>,
    pub response_duration_ms: Option<f64>,
    pub request_throttling_delay_ms: f64,
    pub response_throttling_delay_ms: f64,
}

/// Where workers send their lines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: IntCounter,
}

impl AccessLog {
    /// Starts the writer; it ends when the last clone of the log is gone and everything is written.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(out: impl Write + Send + 'static, dropped: IntCounter) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (lines, receiver) = sync_channel(WAITING);
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write(&receiver, out))?;
        Ok((Self { lines, dropped }, writer))
    }

    /// Hands a line over, or counts it as lost.
    pub fn write(&self, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return self.dropped.inc() };
        text.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(text) {
            self.dropped.inc();
        }
    }
}

fn write(lines: &Receiver<Vec<u8>>, mut out: impl Write) {
    while let Ok(mut batch) = lines.recv() {
        while let Ok(line) = lines.try_recv() {
            batch.extend_from_slice(&line);
            if batch.len() > 64 * 1024 {
                break;
            }
        }
        // Nobody is left to tell when the log itself cannot be written.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
    }
}
