//! What a check of a database has found, how bad that is, and what to do.

use std::fmt;

use serde::Serialize;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Nothing is wrong; somebody may want to know.
    Note,
    /// Something will go wrong, or already goes worse than it could.
    Warning,
    /// Something goes wrong now, or messages may be lost.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word.
    pub check: &'static str,
    pub severity: Severity,
    pub found: String,
    /// What to do about it; none when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, found: found.into(), advice: None }
    }

    pub fn note(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, severity: Severity::Note, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn critical(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, severity: Severity::Critical, found: found.into(), advice: Some(advice.into()) }
    }

    /// As bad as a figure is against its two limits; `found` says what it means.
    pub fn by_limits(
        check: &'static str,
        figure: f64,
        (warning, critical): (f64, f64),
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        if figure >= critical {
            Self::critical(check, found, advice)
        } else if figure >= warning {
            Self::warning(check, found, advice)
        } else {
            Self::ok(check, found)
        }
    }
}

/// The worst of several.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_as_bad_as_the_limit_it_reaches() {
        let severity = |figure| Finding::by_limits("x", figure, (0.1, 0.5), "", "").severity;
        assert_eq!(
            [0.0, 0.09, 0.1, 0.49, 0.5].map(severity),
            [Severity::Ok, Severity::Ok, Severity::Warning, Severity::Warning, Severity::Critical]
        );
        assert_eq!(worst(&[Finding::ok("x", ""), Finding::note("x", "", "")]), Severity::Note);
        assert_eq!(worst(&[]), Severity::Ok);
    }
}
