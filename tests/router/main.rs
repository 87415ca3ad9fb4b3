//! The router from outside: real sockets on port 0, real processes, no sleeps.

mod guard;
mod harness;
mod processes;
mod smoke;
