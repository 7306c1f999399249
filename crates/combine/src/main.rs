//! `combine all`: the combinations, a line each, for the runner of the tests; `combine sample SEED`: those of a seed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = match words[..] {
        ["all"] => combine::all(),
        ["sample", seed] if seed.parse::<u64>().is_ok() => {
            combine::sample(seed.parse().unwrap_or_default(), combine::SAMPLE)
        }
        _ => {
            eprintln!("usage: combine all | combine sample SEED");
            return ExitCode::from(2);
        }
    };
    for combination in found {
        println!("{combination}");
    }
    ExitCode::SUCCESS
}
