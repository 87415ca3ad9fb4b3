//! The model and what it reads and writes: pure functions, no socket and no clock.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, IgnoredAny, SeqAccess, Visitor};

/// Numbers in a row: the features of the scikit-learn diabetes data.
pub(super) const FEATURES: usize = 10;

/// Longest error text: a client that posts megabytes of nonsense does not get them back.
const LONGEST_MESSAGE: usize = 300;

/// What a score is computed from, still unread: reading it is part of the run, as in Azure's server.
#[derive(Debug)]
pub(super) enum Input {
    /// The body of a POST: `{"data": [[10 numbers], ...]}`.
    Body(Bytes),
    /// The query string of a GET: `data=[[10 numbers], ...]`, URL-encoded.
    Query(String),
}

/// The input is not what the model takes; the text says where and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadInput(String);

/// A linear regression.
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    coefficients: [f64; FEATURES],
    intercept: f64,
}

impl Model {
    /// The model that is built in.
    ///
    /// # Errors
    /// The file does not hold a model; impossible in a released program, as a test loads it.
    pub(super) fn load() -> serde_json::Result<Self> {
        serde_json::from_str(include_str!("diabetes-regression.json"))
    }

    /// Another version of it, all of whose predictions are higher by `shift`.
    pub(super) fn shifted(self, shift: f64) -> Self {
        Self { intercept: self.intercept + shift, ..self }
    }

    /// One prediction for each row of `input`.
    pub(super) fn score(&self, input: &Input) -> Result<Vec<f64>, BadInput> {
        let rows = match input {
            Input::Body(body) => read_body(body)?,
            Input::Query(query) => read_query(query)?,
        };
        if rows.is_empty() {
            return Err(BadInput(format!("data: expected at least one row of {FEATURES} numbers, found none")));
        }
        rows.iter().enumerate().map(|(index, row)| self.predict(index, row)).collect()
    }

    /// Even and odd products are summed apart, as the vector unit did for the published sample answer: floating-point
    /// addition is not associative, and the answer has to be the same to the last digit.
    fn predict(&self, index: usize, row: &Row) -> Result<f64, BadInput> {
        let (mut even, mut odd) = (0.0, 0.0);
        for (coefficients, numbers) in self.coefficients.chunks_exact(2).zip(row.0.chunks_exact(2)) {
            even += coefficients[0] * numbers[0];
            odd += coefficients[1] * numbers[1];
        }
        let prediction = even + odd + self.intercept;
        // JSON cannot say "infinite".
        if !prediction.is_finite() {
            return Err(BadInput(format!("data[{index}]: the numbers are too large, the prediction is not finite")));
        }
        Ok(prediction)
    }
}

/// Predictions as Python's `json.dumps` would write them, with a space after each comma.
pub(super) fn render(predictions: &[f64]) -> String {
    let numbers: Vec<String> = predictions.iter().copied().map(render_number).collect();
    format!("[{}]", numbers.join(", "))
}

/// The shortest text that reads back as `number`.
pub(super) fn render_number(number: f64) -> String {
    serde_json::Value::from(number).to_string()
}

#[derive(Deserialize)]
struct Request {
    data: Vec<Row>,
}

fn read_body(body: &[u8]) -> Result<Vec<Row>, BadInput> {
    // serde would also take a struct from an array; the contract is an object.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(BadInput(format!(r#"expected a JSON object {{"data": [[{FEATURES} numbers], ...]}}"#)));
    }
    read_json::<Request>("", body).map(|request| request.data)
}

fn read_query(query: &str) -> Result<Vec<Row>, BadInput> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("data="));
    let Some(value) = value else {
        return Err(BadInput(format!("expected ?data=[[{FEATURES} numbers], ...] in the query string")));
    };
    read_json("data", &url_decode(value))
}

fn read_json<T: DeserializeOwned>(root: &str, json: &[u8]) -> Result<T, BadInput> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // A path of no steps prints as a dot, which would tell the reader nothing.
        let path = if error.path().iter().len() == 0 { String::new() } else { error.path().to_string() };
        explain(&format!("{root}{path}"), error.inner())
    })?;
    reader.end().map_err(|error| explain(root, &error))?;
    Ok(value)
}

fn explain(place: &str, error: &serde_json::Error) -> BadInput {
    let text = if place.is_empty() { error.to_string() } else { format!("{place}: {error}") };
    BadInput(match text.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    })
}

/// Undoes URL encoding. What is not an escape stays as it is; the JSON reader refuses it if it matters.
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

/// The features of one case. Read by hand, for an error that counts, and so that a row of a million numbers is never
/// held in memory.
struct Row([f64; FEATURES]);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RowVisitor)
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a row of {FEATURES} numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Row, A::Error> {
        let mut row = [0.0; FEATURES];
        let mut found = 0;
        for slot in &mut row {
            let Some(number) = numbers.next_element()? else { break };
            *slot = number;
            found += 1;
        }
        while numbers.next_element::<IgnoredAny>()?.is_some() {
            found += 1;
        }
        if found == FEATURES {
            Ok(Row(row))
        } else {
            Err(de::Error::custom(format_args!("expected {FEATURES} numbers, found {found}")))
        }
    }
}
