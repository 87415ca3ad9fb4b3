//! The access log: one JSON line per request, with the columns of Azure's `AmlOnlineEndpointTrafficLog`.
//!
//! Workers hand finished lines to one writer thread through a bounded channel. When the log cannot be written as fast
//! as requests finish, lines are dropped and counted; a request is never delayed.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use prometheus::IntCounter;
use serde::Serialize;

/// Capacity of the channel to the writer, in lines.
const QUEUE_CAPACITY: usize = 8192;

/// One access log line. Times are in milliseconds, sizes in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the columns are Azure's; the struct's page links to them")]
pub struct AccessLogRecord<'a> {
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
    /// Queue wait in milliseconds. This column is not one of Azure's.
    pub queue_duration_ms: f64,
    pub request_duration_ms: Option<f64>,
    pub response_duration_ms: Option<f64>,
    pub request_throttling_delay_ms: f64,
    pub response_throttling_delay_ms: f64,
}

/// The channel to the writer thread. Workers clone it; a clone is cheap.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: IntCounter,
}

impl AccessLog {
    /// Starts the writer thread, which ends when the last clone of the log is dropped and everything is written.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static, dropped: IntCounter) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (lines, receiver) = sync_channel(QUEUE_CAPACITY);
        let writer =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_batches(&receiver, out))?;
        Ok((Self { lines, dropped }, writer))
    }

    /// Queues a line for the writer, or counts it as dropped when the channel is full.
    pub fn write(&self, line: &AccessLogRecord<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return self.dropped.inc() };
        text.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(text) {
            self.dropped.inc();
        }
    }
}

fn write_batches(lines: &Receiver<Vec<u8>>, mut out: impl Write) {
    while let Ok(mut batch) = lines.recv() {
        while let Ok(line) = lines.try_recv() {
            batch.extend_from_slice(&line);
            if batch.len() > 64 * 1024 {
                break;
            }
        }
        // When the log itself cannot be written, there is no place left to report it.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
    }
}
