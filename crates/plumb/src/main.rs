//! The program `plumb`; all of it is in the library, which says why.

fn main() -> std::process::ExitCode {
    plumb::main()
}
