//! What runs in the pods of the end-to-end suite: see `pillion_tests::e2e::app`.

fn main() -> std::process::ExitCode {
    pillion_tests::e2e::app::main(std::env::args().skip(1))
}
