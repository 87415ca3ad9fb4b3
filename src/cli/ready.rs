//! `ready`: asks a router whether it is ready, for health checks that can only run a program, such as those of
//! containers.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::admin::{self, fetch, visible};
use super::cluster::block_on;
use super::{DONE, FAILED, Failed, print};

#[derive(Debug, Args)]
pub(super) struct ReadyCommand {
    /// Address of the router's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = admin::url)]
    admin: String,
}

impl ReadyCommand {
    pub(super) fn run(self) -> ExitCode {
        let url = format!("{}/readyz", self.admin.trim_end_matches('/'));
        match block_on(async { Ok(fetch(&url).await?) }) {
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
