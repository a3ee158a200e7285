//! Becomes another program whose fdatasync a test answers: see `pillion_tests::sync_gate`.

fn main() -> std::io::Result<()> {
    pillion_tests::sync_gate::main(&std::env::args_os().skip(1).collect::<Vec<_>>())
}
