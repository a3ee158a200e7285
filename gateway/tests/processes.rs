//! `pillion` as processes: what only a kernel can prove of the supervisor, of standalone and of the command line.

#[path = "processes/cluster.rs"]
mod cluster;
#[path = "processes/inject.rs"]
mod inject;
#[path = "processes/process.rs"]
mod process;
#[path = "processes/queue.rs"]
mod queue;
#[path = "processes/send.rs"]
mod send;
#[path = "processes/standalone.rs"]
mod standalone;
#[path = "processes/supervisor.rs"]
mod supervisor;
#[path = "processes/validate.rs"]
mod validate;
