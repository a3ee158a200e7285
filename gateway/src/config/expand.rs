//! `${env:NAME}`, `${env:NAME:-default}`, `${file:PATH}` and `$$` in a value, as in the Collector.
//!
//! What is put in is never read as YAML and never expanded again: a variable cannot become a key, a list or another
//! variable.

use super::Environment;

/// A part of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// As written, or from a variable.
    Text(String),
    /// `${file:PATH}`, for whoever reads files.
    File(String),
}

/// Takes a value apart and puts the variables in. The error names the variable or the place, never a value.
pub(super) fn pieces(raw: &str, env: Environment<'_>) -> Result<Vec<Piece>, String> {
    let mut out = Vec::new();
    let mut text = String::new();
    let mut rest = raw;
    while let Some(dollar) = rest.find('$') {
        text.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            text.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) = after.split_once('}').ok_or("${ has no closing }")?;
            rest = after;
            match inside.split_once(':') {
                Some(("env", name)) => text.push_str(&variable(name, env)?),
                Some(("file", "")) => return Err("${file:} names no file".to_owned()),
                Some(("file", path)) => {
                    push_text(&mut out, &mut text);
                    out.push(Piece::File(path.to_owned()));
                }
                // Without an echo: in a header this may be a piece of a password that has a dollar sign in it.
                _ => return Err("${ must be followed by env: or file: (or write $$ for a dollar sign)".to_owned()),
            }
        } else {
            text.push('$');
        }
    }
    text.push_str(rest);
    push_text(&mut out, &mut text);
    Ok(out)
}

fn push_text(out: &mut Vec<Piece>, text: &mut String) {
    if !text.is_empty() {
        out.push(Piece::Text(std::mem::take(text)));
    }
}

fn variable(reference: &str, env: Environment<'_>) -> Result<String, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let valid = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !valid {
        return Err("${env:...} needs the name of a variable: letters, digits and underscores".to_owned());
    }
    env(name).or(default.map(str::to_owned)).ok_or_else(|| {
        format!("the environment variable {name} is not set: set it, or give a default with ${{env:{name}:-value}}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("otel.example".to_owned()),
            "NESTED" => Some("${env:HOST} $HOST".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn text(raw: &str) -> String {
        match pieces(raw, &environment).expect(raw).as_slice() {
            [] => String::new(),
            [Piece::Text(text)] => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Scenario: variables alone, within text, with defaults, escaped, and one that holds a reference itself.
    /// Guarantees: each is put in once; what a variable holds is never expanded again.
    #[test]
    fn variables_are_put_in_once() {
        assert_eq!(text("https://${env:HOST}:4317"), "https://otel.example:4317");
        assert_eq!(text("${env:MISSING:-fallback}"), "fallback");
        assert_eq!(text("${env:HOST:-fallback}"), "otel.example");
        assert_eq!(text("${env:EMPTY:-fallback}"), "");
        assert_eq!(text("${env:NESTED}"), "${env:HOST} $HOST");
        assert_eq!(text("$${env:HOST} $HOME 5$"), "${env:HOST} $HOME 5$");
        assert_eq!(text(""), "");
    }

    /// Scenario: references that cannot be followed.
    /// Guarantees: the error says which, and how it is written.
    #[test]
    fn a_reference_that_cannot_be_followed_is_named() {
        for (raw, part) in [
            ("${env:MISSING}", "MISSING is not set"),
            ("${HOST}", "followed by env:"),
            ("${vault:x}", "followed by env:"),
            ("${env:HOST", "no closing }"),
            ("${env:}", "name of a variable"),
            ("${env:a-b}", "name of a variable"),
            ("${file:}", "names no file"),
        ] {
            let error = pieces(raw, &environment).expect_err(raw);
            assert!(error.contains(part), "{raw}: {error}");
        }
    }

    /// Scenario: a header with text around a file.
    /// Guarantees: the parts come in order.
    #[test]
    fn files_stay_references() {
        assert_eq!(
            pieces("Bearer ${file:/run/token}", &environment),
            Ok(vec![Piece::Text("Bearer ".to_owned()), Piece::File("/run/token".to_owned())])
        );
    }
}
