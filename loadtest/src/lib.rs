//! Load, a sink that faults on demand, the floor to compare with, and what a process costs.
//!
//! What is sent, and what must arrive:
//! - [`profile`] says what pods send; [`template`] encodes it once and patches each request in place.
//! - [`identity`] makes the ids that tell each item apart; [`item`] finds them in a request, over [`wire`].
//! - [`ledger`] keeps what was acknowledged, [`judge`] what arrived, a [`bitmap`] each; [`histogram`] keeps latencies.
//! - [`schedule`] says when each request is due, [`generator`] sends it then.
//!
//! What is compared, and how:
//! - [`scenario`] is a file that says what is done; [`network`] gives each pod a namespace; [`arm`] starts what is compared,
//!   on a [`small_disk`] where one fills up.
//! - [`baselines`] gets what others make into a cache; [`limits`] gives every agent the same memory.
//! - [`roster`] knows an arm's processes and what they spend. [`cell`] is one run of one arm, measured; [`verdict`] says what may be said of several.
//! - [`saturate`] counts spans per CPU-second in a closed loop, beside the floor.
//! - [`interrupt`] ends a run early, and well.
//! - [`kubernetes`] is such a run on a cluster.
//! - [`compare`] runs rounds of them, [`report`] tells what came of it, [`mod@assert`] whether it may; [`cli`] is the command.
//!
//! For benches and tests:
//! - [`payload`] makes small requests from given ids, and reads the ids back.
//! - [`client`] sends them over raw HTTP/2, in a closed loop, cheaply enough not to be what is measured.
//! - [`sink`] is a backend: discards or records, refuses or stalls as told.
//! - [`subject`] starts the gateway that a bench measures, under a profiler if asked to.
//! - [`floor`] forwards the same bytes over the `h2` crate, untouched: the least that a gateway could cost.
//! - [`budget`] holds what a path takes against what it may take.
//! - [`measure`] reads a process's CPU time and memory from /proc.

pub mod arm;
pub mod assert;
pub mod baselines;
pub mod bitmap;
pub mod budget;
pub mod cell;
pub mod cli;
pub mod client;
pub mod compare;
pub mod floor;
pub mod generator;
pub mod histogram;
pub mod identity;
pub mod interrupt;
pub mod item;
pub mod judge;
pub mod kubernetes;
pub mod ledger;
pub mod limits;
pub mod measure;
pub mod network;
pub mod payload;
pub mod profile;
pub mod report;
pub mod roster;
pub mod saturate;
pub mod scenario;
pub mod schedule;
pub mod sink;
pub mod small_disk;
pub mod subject;
pub mod template;
pub mod verdict;
pub mod ways;
pub mod wire;
