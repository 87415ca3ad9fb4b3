//! The model, with its input and output formats: pure functions without a socket and a clock.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, IgnoredAny, SeqAccess, Visitor};

/// The numbers of a row: the features of the scikit-learn diabetes data.
pub(super) const FEATURE_COUNT: usize = 10;

/// The longest error text, so that a client that posts megabytes of invalid data does not get them back.
const MAX_MESSAGE_CHARS: usize = 300;

/// The unparsed input of a score. Parsing is part of the run, as in Azure's server.
#[derive(Debug)]
pub(super) enum ScoreInput {
    /// The body of a POST: `{"data": [[10 numbers], ...]}`.
    Body(Bytes),
    /// The query string of a GET: `data=[[10 numbers], ...]`, URL-encoded.
    Query(String),
}

/// The input is not valid. The text says where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidInput(String);

/// A linear regression.
#[derive(Debug, Deserialize)]
pub(super) struct LinearModel {
    coefficients: [f64; FEATURE_COUNT],
    intercept: f64,
}

impl LinearModel {
    /// Loads the model that is built into the program.
    ///
    /// # Errors
    ///
    /// When the file does not hold a model. A test loads it, so this cannot happen in a released program.
    pub(super) fn load() -> serde_json::Result<Self> {
        serde_json::from_str(include_str!("diabetes-regression.json"))
    }

    /// Returns another version of the model, all of whose predictions are higher by `shift`.
    pub(super) fn with_shift(self, shift: f64) -> Self {
        Self { intercept: self.intercept + shift, ..self }
    }

    /// Returns one prediction for each row of `input`.
    pub(super) fn score(&self, input: &ScoreInput) -> Result<Vec<f64>, InvalidInput> {
        let rows = match input {
            ScoreInput::Body(body) => parse_body(body)?,
            ScoreInput::Query(query) => parse_query(query)?,
        };
        if rows.is_empty() {
            return Err(InvalidInput(format!(
                "data: expected at least one row of {FEATURE_COUNT} numbers, found none"
            )));
        }
        rows.iter().enumerate().map(|(index, row)| self.predict(index, row)).collect()
    }

    /// Even and odd products are summed separately, as the vector unit did for the published sample answer:
    /// floating-point addition is not associative, and the answer must be the same to the last digit.
    fn predict(&self, index: usize, row: &FeatureRow) -> Result<f64, InvalidInput> {
        let (mut even, mut odd) = (0.0, 0.0);
        for (coefficients, numbers) in self.coefficients.chunks_exact(2).zip(row.0.chunks_exact(2)) {
            even += coefficients[0] * numbers[0];
            odd += coefficients[1] * numbers[1];
        }
        let prediction = even + odd + self.intercept;
        // JSON cannot express infinity.
        if !prediction.is_finite() {
            return Err(InvalidInput(format!(
                "data[{index}]: the numbers are too large, the prediction is not finite"
            )));
        }
        Ok(prediction)
    }
}

/// Formats predictions as Python's `json.dumps` would, with a space after each comma.
pub(super) fn render_predictions(predictions: &[f64]) -> String {
    let numbers: Vec<String> = predictions.iter().copied().map(render_number).collect();
    format!("[{}]", numbers.join(", "))
}

/// Returns the shortest text that parses to `number`.
pub(super) fn render_number(number: f64) -> String {
    serde_json::Value::from(number).to_string()
}

#[derive(Deserialize)]
struct ScoreRequest {
    data: Vec<FeatureRow>,
}

fn parse_body(body: &[u8]) -> Result<Vec<FeatureRow>, InvalidInput> {
    // Serde would also accept an array for a struct; the input must be an object.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(InvalidInput(format!(r#"expected a JSON object {{"data": [[{FEATURE_COUNT} numbers], ...]}}"#)));
    }
    parse_json::<ScoreRequest>("", body).map(|request| request.data)
}

fn parse_query(query: &str) -> Result<Vec<FeatureRow>, InvalidInput> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("data="));
    let Some(value) = value else {
        return Err(InvalidInput(format!("expected ?data=[[{FEATURE_COUNT} numbers], ...] in the query string")));
    };
    parse_json("data", &url_decode(value))
}

fn parse_json<T: DeserializeOwned>(root: &str, json: &[u8]) -> Result<T, InvalidInput> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // An empty path is displayed as a dot, which would not help the reader.
        let path = if error.path().iter().len() == 0 { String::new() } else { error.path().to_string() };
        input_error(&format!("{root}{path}"), error.inner())
    })?;
    reader.end().map_err(|error| input_error(root, &error))?;
    Ok(value)
}

fn input_error(place: &str, error: &serde_json::Error) -> InvalidInput {
    let text = if place.is_empty() { error.to_string() } else { format!("{place}: {error}") };
    InvalidInput(match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    })
}

/// Decodes URL encoding. What is not an escape stays as it is; the JSON parser refuses it if it matters.
fn url_decode(text: &str) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        let escape = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match (escape, first) {
            (Some((high, low)), _) => decoded.push(high << 4 | low),
            (None, b'+') => decoded.push(b' '),
            (None, other) => decoded.push(*other),
        }
        rest = if escape.is_some() { &rest[3..] } else { tail };
    }
    decoded
}

/// The features of one case. The row is parsed by hand, for an error that counts numbers, and so that a row of a
/// million numbers is never held in memory.
struct FeatureRow([f64; FEATURE_COUNT]);

impl<'de> Deserialize<'de> for FeatureRow {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FeatureRowVisitor)
    }
}

struct FeatureRowVisitor;

impl<'de> Visitor<'de> for FeatureRowVisitor {
    type Value = FeatureRow;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a row of {FEATURE_COUNT} numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<FeatureRow, A::Error> {
        let mut row = [0.0; FEATURE_COUNT];
        let mut found = 0;
        for feature in &mut row {
            let Some(number) = numbers.next_element()? else { break };
            *feature = number;
            found += 1;
        }
        while numbers.next_element::<IgnoredAny>()?.is_some() {
            found += 1;
        }
        if found == FEATURE_COUNT {
            Ok(FeatureRow(row))
        } else {
            Err(de::Error::custom(format_args!("expected {FEATURE_COUNT} numbers, found {found}")))
        }
    }
}
