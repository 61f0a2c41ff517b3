//! The program without plug-ins; the library of the same name says what it consists of.

use std::process::ExitCode;

use lakebed::redo::Managers;

fn main() -> ExitCode {
    lakebed::run(Managers::default())
}
