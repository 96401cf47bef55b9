//! What was measured: rows of figures, by section; and the file that keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// One case over one transport: a flat JSON object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row(Map<String, Value>);

impl Row {
    /// A row of a JSON object.
    pub(crate) fn parse(value: Value) -> Result<Self> {
        match value {
            Value::Object(members)
                if members.values().all(|value| !value.is_array() && !value.is_object()) =>
            {
                Ok(Self(members))
            }
            other => bail!("not a flat JSON object: {other}"),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64().filter(|number| number.is_finite())
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// Whether all of these are so: text is compared as text, numbers as numbers.
    pub(crate) fn is(&self, conditions: &[(&str, &str)]) -> bool {
        conditions.iter().all(|(key, wanted)| match self.0.get(*key) {
            Some(Value::String(text)) => text == wanted,
            Some(value) => value.as_f64().is_some_and(|number| wanted.parse() == Ok(number)),
            None => false,
        })
    }
}

/// The rows that JSON objects, one a line, are.
pub(crate) fn parse_lines(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let row = serde_json::from_str(line).map_err(Into::into).and_then(Row::parse);
        rows.push(row.with_context(|| format!("line {number} of its output is not whole: {line}"))?);
    }
    if rows.is_empty() {
        bail!("it put out nothing");
    }
    Ok(rows)
}

/// The middle one, or between the two in the middle; none of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Rows with the same values at `keys` as one each, in the order of their first: numbers are their
/// medians, and what is no number is that of the first.
pub(crate) fn medians(rows: Vec<Row>, keys: &[&str]) -> Vec<Row> {
    let same = |a: &Row, b: &Row| keys.iter().all(|&key| a.0.get(key) == b.0.get(key));
    let mut cases: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        match cases.iter_mut().find(|case| same(&case[0], &row)) {
            Some(case) => case.push(row),
            None => cases.push(vec![row]),
        }
    }
    let mut merged = Vec::new();
    for case in cases {
        let mut row = case[0].clone();
        for (key, value) in &mut row.0 {
            if value.is_number() && !keys.contains(&key.as_str()) {
                *value = median(case.iter().filter_map(|row| row.number(key)).collect()).into();
            }
        }
        merged.push(row);
    }
    merged
}

/// What one section gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    /// How it was measured, in words: what a person would have to type, or what was done.
    pub(crate) how: String,
    pub(crate) quick: bool,
    pub(crate) rows: Vec<Row>,
}

impl Measured {
    /// The rows of which `conditions` are true.
    pub(crate) fn rows(&self, conditions: &[(&str, &str)]) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.is(conditions)).collect()
    }

    /// One figure of the one row of which `conditions` are true.
    pub(crate) fn figure(&self, conditions: &[(&str, &str)], key: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.is(conditions))?.number(key)
    }

    /// Points of a line, ordered by `x`; what lacks either number is left out.
    pub(crate) fn points(&self, conditions: &[(&str, &str)], x: &str, y: &str) -> Vec<(f64, f64)> {
        let mut points: Vec<(f64, f64)> =
            self.rows(conditions).into_iter().filter_map(|row| row.number(x).zip(row.number(y))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Data {
    /// Machine and settings, by their names.
    pub(crate) setup: BTreeMap<String, String>,
    pub(crate) sections: BTreeMap<String, Measured>,
}

impl Data {
    /// What the file has; nothing if there is no file.
    ///
    /// # Errors
    ///
    /// It can not be read, or is not whole.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.with_context(|| format!("reading {}", path.display()))?,
        };
        Self::parse(&text)
            .with_context(|| format!("{} is not whole; move it away, or give another --out", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let document: Value = serde_json::from_str(text)?;
        let object = |value: &Value, what: &str| match value.as_object() {
            Some(object) => Ok(object.clone()),
            None => bail!("it has no {what}"),
        };
        let mut data = Self::default();
        for (name, value) in object(&document["setup"], "setup")? {
            let value = value.as_str().with_context(|| format!("the setup {name} is no text"))?;
            data.setup.insert(name, value.to_owned());
        }
        for (name, section) in object(&document["sections"], "sections")? {
            let whole = || format!("its section {name}");
            let rows = section["rows"].as_array().context("no rows").with_context(whole)?;
            let rows = rows.iter().cloned().map(Row::parse).collect::<Result<_>>().with_context(whole)?;
            let how = section["how"].as_str().context("no word how it was measured").with_context(whole)?;
            let quick =
                section["quick"].as_bool().context("no word whether it was quick").with_context(whole)?;
            data.sections.insert(name, Measured { how: how.to_owned(), quick, rows });
        }
        Ok(data)
    }

    /// Writes the file, a row a line.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, self.text()).with_context(|| format!("writing {}", path.display()))
    }

    fn text(&self) -> String {
        let sections: Vec<String> = self
            .sections
            .iter()
            .map(|(name, section)| {
                let rows: Vec<String> =
                    section.rows.iter().map(|row| format!("        {}", Value::from(row.0.clone()))).collect();
                format!(
                    "    {}: {{\n      \"how\": {},\n      \"quick\": {},\n      \"rows\": [\n{}\n      ]\n    }}",
                    json!(name),
                    json!(section.how),
                    section.quick,
                    rows.join(",\n")
                )
            })
            .collect();
        let setup: Vec<String> =
            self.setup.iter().map(|(name, value)| format!("    {}: {}", json!(name), json!(value))).collect();
        format!(
            "{{\n  \"setup\": {{\n{}\n  }},\n  \"sections\": {{\n{}\n  }}\n}}\n",
            setup.join(",\n"),
            sections.join(",\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        Row::parse(serde_json::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![1.0, 2.0]), Some(1.5));
        assert_eq!(median(vec![f64::NAN, 3.0, f64::INFINITY]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn rounds_of_a_case_become_one_row() {
        let rows = vec![
            row(r#"{"transport": "tcp", "n": 1, "figure": 5.0, "on": "a"}"#),
            row(r#"{"transport": "smc", "n": 1, "figure": 1.0, "on": "b"}"#),
            row(r#"{"transport": "tcp", "n": 1, "figure": 7.0, "on": "c"}"#),
            row(r#"{"transport": "tcp", "n": 2, "figure": 9.0, "on": "a"}"#),
            row(r#"{"transport": "tcp", "n": 1, "figure": null, "on": "a"}"#),
        ];
        let merged = medians(rows, &["transport", "n"]);
        assert_eq!(merged.len(), 3);
        assert_eq!((merged[0].number("figure"), merged[0].text("on")), (Some(6.0), Some("a")));
        assert_eq!(merged[0].number("n"), Some(1.0));
        assert_eq!(merged[1].number("figure"), Some(1.0));
        assert!(medians(Vec::new(), &["n"]).is_empty());
    }

    #[test]
    fn what_is_not_whole_is_refused_and_said_where() {
        for text in ["", "\n\n", "{\"a\": 1", "[1]", "7", "{\"a\": [1]}", "{\"a\": {}}", "{\"a\": 1}\nand"] {
            assert!(parse_lines(text).is_err(), "{text}");
        }
        let error = format!("{:#}", parse_lines("{\"a\": 1}\n{\"a\"").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(parse_lines("{\"a\": 1}\n\n{\"a\": 2}\n").unwrap().len(), 2);
    }

    #[test]
    fn rows_are_found_by_text_and_number() {
        let section = Measured {
            how: String::new(),
            quick: false,
            rows: vec![
                row(r#"{"transport": "tcp", "n": 100, "y": 2.5}"#),
                row(r#"{"transport": "tcp", "n": 10, "y": 1.5}"#),
                row(r#"{"transport": "tcp", "n": 1000, "y": null}"#),
                row(r#"{"transport": "smc", "n": 10, "y": 4}"#),
            ],
        };
        assert_eq!(section.points(&[("transport", "tcp")], "n", "y"), [(10.0, 1.5), (100.0, 2.5)]);
        assert_eq!(section.points(&[("transport", "uds")], "n", "y"), []);
        assert_eq!(section.points(&[("transport", "tcp")], "z", "y"), []);
        assert_eq!(section.figure(&[("transport", "smc"), ("n", "10")], "y"), Some(4.0));
        assert_eq!(section.figure(&[("transport", "smc"), ("n", "ten")], "y"), None);
    }

    #[test]
    fn the_file_keeps_everything_and_a_broken_one_is_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("data.json");
        assert_eq!(Data::load(&path).unwrap(), Data::default());
        let mut data = Data::default();
        data.setup.insert("machine".to_owned(), "a \"fast\" one".to_owned());
        let rows = vec![row(r#"{"transport": "tcp", "y": 2.5}"#), row(r#"{"transport": "smc", "y": null}"#)];
        data.sections.insert("load".to_owned(), Measured { how: "so".to_owned(), quick: true, rows });
        data.save(&path).unwrap();
        assert_eq!(Data::load(&path).unwrap(), data);

        let whole = data.text();
        for broken in [
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"rows\"", "\"lines\""),
            whole.replace("\"how\"", "\"why\""),
            whole.replace("true", "1"),
            whole.replace("2.5", "[2.5]"),
            whole.replace("\"sections\"", "\"parts\""),
            String::new(),
        ] {
            fs::write(&path, &broken).unwrap();
            let error = format!("{:#}", Data::load(&path).unwrap_err());
            assert!(error.contains("data.json is not whole"), "{error}");
        }
        assert!(Data::load(place.path()).is_err(), "a directory");
    }
}
