//! Long steps, shown: a spinner on a terminal, plain lines otherwise. All on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The step under way.
#[derive(Debug)]
pub struct Step(Option<ProgressBar>);

impl Step {
    /// Begins a step.
    pub fn begin(what: &str) -> Step {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
            return Step(None);
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Step(Some(bar))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
