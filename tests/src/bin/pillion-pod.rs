//! The inside of a pod, for tests: see `pillion_tests::pod`.

fn main() -> std::io::Result<()> {
    pillion_tests::pod::inside::main(std::env::args_os().skip(1).collect())
}
