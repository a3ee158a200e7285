//! The end-to-end suite: see `pillion_tests::e2e`.

fn main() -> std::process::ExitCode {
    pillion_tests::e2e::main(std::env::args().skip(1))
}
