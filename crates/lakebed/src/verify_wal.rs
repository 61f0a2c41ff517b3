//! `lakebed verify-wal`: shows what the crate `verify` finds.
//!
//! Data goes to standard output: tables, or with `--json` one object per line, the last one the summary. A progress bar
//! is on standard error when that is a terminal.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lakebed_redo::Managers;
use lakebed_types::Lsn;
use lakebed_verify::fields::FieldDifference;
use lakebed_verify::report::{Against, NotCheckable, TypeCounts};
use lakebed_verify::{Native, Progress, Report, Request, verify};
use serde_json::json;

use crate::cli::VerifyWalArgs;
use crate::client::table;

/// Runs the verification, with `managers` for records of extensions; an error is also that something differs or was
/// skipped.
pub fn run(args: VerifyWalArgs, as_json: bool, managers: &Managers) -> anyhow::Result<()> {
    let lsn = |name: &str, text: Option<String>| -> anyhow::Result<Option<Lsn>> {
        text.map(|text| text.parse().with_context(|| format!("{name} {text}")))
            .transpose()
    };
    let request = Request {
        base: args.base,
        wal: args.wal,
        from: lsn("--from", args.from)?,
        to: lsn("--to", args.to)?,
        against: args.against,
        memory_bytes: args
            .memory_mib
            .checked_mul(1 << 20)
            .context("--memory-mib is too large")?,
        shown: args.show,
    };
    let mut bar = Bar::new();
    let result = verify(&request, &Native, managers, &mut |progress| bar.show(progress));
    drop(bar);
    let mut out = std::io::stdout().lock();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            if as_json {
                let line = json!({ "type": "summary", "ok": false, "error": error.to_string() });
                writeln!(out, "{line}")?;
            }
            return Err(error.into());
        }
    };
    if as_json {
        print_json(&mut out, &report)?;
    } else {
        print_text(&mut out, &report)?;
    }
    if report.ok() {
        return Ok(());
    }
    let differing = report.against.as_ref().map_or(0, |against| against.differing);
    bail!(
        "not verified: {} pages differ from their images, {differing} differences from the recovered cluster{}",
        report.mismatched(),
        report
            .skipped()
            .iter()
            .map(|skipped| format!("; {skipped}"))
            .collect::<String>()
    )
}

/// The progress bar, if there is a terminal to show it.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Bar {
        if !std::io::stderr().is_terminal() {
            return Bar(None);
        }
        let bar = ProgressBar::no_length();
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Bar(Some(bar))
    }

    fn show(&mut self, progress: Progress) {
        let Some(bar) = &self.0 else {
            return;
        };
        let (message, done, all) = match progress {
            Progress::Wal { done, all, lsn } => (format!("WAL {lsn}"), done, all),
            Progress::Files { done, all } => ("files".to_owned(), done, all),
        };
        bar.set_message(message);
        bar.set_length(all.max(done));
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A value as JSON with its kind in front.
fn line(kind: &str, value: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut line = serde_json::Map::new();
    line.insert("type".to_owned(), json!(kind));
    if let serde_json::Value::Object(fields) = serde_json::to_value(value)? {
        line.extend(fields);
    }
    Ok(serde_json::to_string(&line)?)
}

fn print_json(out: &mut impl Write, report: &Report) -> anyhow::Result<()> {
    for ((rmgr, operation), counts) in &report.types {
        let mut fields = serde_json::to_value(counts)?;
        fields["rmgr"] = json!(rmgr);
        fields["operation"] = json!(operation);
        writeln!(out, "{}", line("record_type", &fields)?)?;
    }
    for mismatch in &report.mismatches {
        writeln!(out, "{}", line("mismatch", mismatch)?)?;
    }
    for difference in report.against.iter().flat_map(|against| &against.differences) {
        writeln!(out, "{}", line("difference", difference)?)?;
    }
    writeln!(out, "{}", line("summary", &report.summary())?)?;
    Ok(())
}

/// Why some were not compared, most frequent reason first.
fn reasons(counts: &TypeCounts) -> String {
    let mut reasons: Vec<(u64, String)> = counts
        .not_checkable
        .iter()
        .map(|(reason, count)| (*count, format!("{count} {}", words(*reason))))
        .collect();
    let allowed = counts
        .allowed
        .iter()
        .map(|(class, count)| (*count, format!("{count} allowed: {class:?}")));
    reasons.extend(allowed);
    reasons.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let words: Vec<String> = reasons.into_iter().map(|(_, words)| words).collect();
    words.join(", ")
}

fn words(reason: NotCheckable) -> &'static str {
    match reason {
        NotCheckable::NoPage => "without a page",
        NotCheckable::ImageToApply => "images to apply",
        NotCheckable::HintOnly => "hints only",
        NotCheckable::FreeSpaceMap => "of a free space map",
        NotCheckable::NewerPage => "on a newer page",
        NotCheckable::MissingPage => "on a page that is gone later",
        NotCheckable::NoImage => "without an image",
        NotCheckable::BeforeRange => "before the range",
    }
}

fn print_text(out: &mut impl Write, report: &Report) -> anyhow::Result<()> {
    let rows = report.types.iter().map(|((rmgr, operation), counts)| {
        vec![
            format!("{rmgr}/{operation}"),
            counts.seen.to_string(),
            counts.checked.to_string(),
            counts.mismatched.to_string(),
            reasons(counts),
        ]
    });
    let mut types = table(&["RECORD", "SEEN", "CHECKED", "MISMATCHED", "NOT CHECKED"]);
    types.add_rows(rows);
    writeln!(out, "{types}")?;
    for mismatch in &report.mismatches {
        let note = match (mismatch.fields.is_empty(), mismatch.stricter_than_postgres) {
            (true, _) => ": the page does not exist",
            (_, true) => " (Postgres's own check would not see it)",
            (_, false) => "",
        };
        writeln!(
            out,
            "\nmismatch at {}: {}/{} {} {} block {}{note}",
            mismatch.lsn, mismatch.rmgr, mismatch.operation, mismatch.relation, mismatch.fork, mismatch.block
        )?;
        print_fields(out, &mismatch.fields)?;
    }
    if let Some(against) = &report.against {
        print_against(out, against)?;
    }
    let summary = report.summary();
    writeln!(
        out,
        "\nPostgres {}, {} to {} ({}): {} records, {} MB of WAL",
        summary.postgres,
        summary.start,
        summary.end,
        summary.end_reason,
        summary.records,
        summary.wal_bytes / 1_000_000
    )?;
    writeln!(
        out,
        "{} pages compared with images in {} of {} record types, {} mismatched",
        summary.checked, summary.types_checked, summary.types_seen, summary.mismatched
    )?;
    for (class, count) in &summary.allowed {
        writeln!(out, "allowed: {count} {class:?}: {}", class.justification())?;
    }
    for skipped in &summary.skipped {
        writeln!(out, "skipped: {skipped}")?;
    }
    let verdict = if summary.ok { "verified" } else { "NOT VERIFIED" };
    writeln!(out, "{verdict}")?;
    Ok(())
}

fn print_fields(out: &mut impl Write, fields: &[FieldDifference]) -> anyhow::Result<()> {
    for field in fields {
        writeln!(out, "  {} (byte {})", field.field, field.at)?;
        writeln!(out, "    ours     {}", field.ours)?;
        writeln!(out, "    Postgres {}", field.postgres)?;
    }
    Ok(())
}

fn print_against(out: &mut impl Write, against: &Against) -> anyhow::Result<()> {
    writeln!(out, "\nAgainst the recovered cluster:")?;
    for (kind, count) in &against.pages {
        writeln!(out, "  {count} pages of {kind} compared")?;
    }
    writeln!(out, "  {} sizes of forks compared", against.forks)?;
    for (kind, count) in &against.files {
        writeln!(out, "  {count} {kind} compared")?;
    }
    for (class, legitimate) in &against.legitimate {
        writeln!(
            out,
            "  legitimate: {} {class}: {}",
            legitimate.count, legitimate.justification
        )?;
    }
    for difference in &against.differences {
        writeln!(out, "difference: {} {}", difference.what, difference.how)?;
        print_fields(out, &difference.fields)?;
    }
    writeln!(out, "  {} differences", against.differing)?;
    Ok(())
}
