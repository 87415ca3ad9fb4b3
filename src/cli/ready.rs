//! `ready`: does a router take requests? For those who can only run a program, as the health checks of containers.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::admin::{self, ask, visible};
use super::cluster::block_on;
use super::{DONE, FAILED, Failed, print};

#[derive(Debug, Args)]
pub(super) struct Ready {
    /// The router's admin listener.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = admin::url)]
    admin: String,
}

impl Ready {
    pub(super) fn run(self) -> ExitCode {
        let url = format!("{}/readyz", self.admin.trim_end_matches('/'));
        match block_on(async { Ok(ask(&url).await?) }) {
            Ok((status, text)) => {
                print(&format!("{}\n", visible(text.trim_end())));
                ExitCode::from(if status == 200 { DONE } else { FAILED })
            }
            Err(Failed(what, code)) => {
                let _ = writeln!(std::io::stderr(), "{what}");
                ExitCode::from(code)
            }
        }
    }
}
