//! Samples, and the table that they become.

use serde_json::{Value, json};

/// From so many samples on there is a 99th percentile; with fewer it would be the maximum by another name.
const SAMPLES_FOR_P99: usize = 100;

/// What was measured, in no order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// Adds many.
    pub(crate) fn extend(&mut self, samples: Samples) {
        self.0.extend(samples.0);
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> usize {
        self.0.len()
    }

    /// The least; 0 if there is none.
    pub(crate) fn min(&self) -> f64 {
        self.at(0.0)
    }

    /// The one in the middle, the lower of two; 0 if there is none.
    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The 99th percentile, where there are enough samples for one.
    pub(crate) fn p99(&self) -> Option<f64> {
        (self.count() >= SAMPLES_FOR_P99).then(|| self.at(0.99))
    }

    /// How much more each is than the one of `baseline` beside it: neighbours in time have met the same machine.
    pub(crate) fn above(&self, baseline: &Samples) -> Samples {
        self.0.iter().zip(&baseline.0).map(|(ours, theirs)| ours - theirs).collect()
    }

    /// The sample that `part` of all are not above (nearest rank).
    fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(samples: T) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Which bench.
    pub(crate) bench: &'static str,
    /// What was done.
    pub(crate) what: String,
    /// Of [`Row::samples`].
    pub(crate) unit: &'static str,
    /// How long each took.
    pub(crate) samples: Samples,
    /// Processor time of one, user and system, of all processes concerned, in milliseconds.
    pub(crate) cpu_ms: Option<f64>,
    /// Median by median of the baseline.
    pub(crate) ratio: Option<f64>,
    /// What a reader should know beside the numbers.
    pub(crate) remark: String,
}

impl Row {
    /// A row without processor time, ratio and remark.
    pub(crate) fn new(
        bench: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        samples: Samples,
    ) -> Self {
        Self { bench, what: what.into(), unit, samples, cpu_ms: None, ratio: None, remark: String::new() }
    }

    /// The same, with what it cost and how it compares with `baseline`.
    pub(crate) fn against(self, baseline: &Samples) -> Self {
        let ratio = self.samples.median() / baseline.median();
        Self { ratio: ratio.is_finite().then_some(ratio), ..self }
    }
}

/// The rows as a table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["bench", "what", "n", "min", "median", "p99", "unit", "cpu ms", "ratio", ""];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Words to the left, numbers to the right.
            text.push_str(&match column {
                0 | 1 | 6 | 9 => format!("{cell:<width$}  "),
                _ => format!("{cell:>width$}  "),
            });
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let number = |value: f64| match value {
        _ if value >= 10.0 => format!("{value:.1}"),
        _ if value >= 0.1 || value == 0.0 => format!("{value:.2}"),
        // Processor time of one request: hundredths of a millisecond.
        _ => format!("{value:.4}"),
    };
    let maybe = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    vec![
        row.bench.to_owned(),
        row.what.clone(),
        row.samples.count().to_string(),
        number(row.samples.min()),
        number(row.samples.median()),
        maybe(row.samples.p99()),
        row.unit.to_owned(),
        maybe(row.cpu_ms),
        maybe(row.ratio),
        row.remark.clone(),
    ]
}

/// The rows for programs: a list of objects, all samples included.
pub(crate) fn json(rows: &[Row]) -> String {
    let of_row = |row: &Row| -> Value {
        json!({
            "bench": row.bench, "what": row.what, "unit": row.unit, "min": row.samples.min(),
            "median": row.samples.median(), "p99": row.samples.p99(), "cpu_ms": row.cpu_ms, "ratio": row.ratio,
            "remark": row.remark, "samples": row.samples.0,
        })
    };
    format!("{:#}\n", Value::from(rows.iter().map(of_row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let table: [(&[f64], f64, f64); 4] =
            [(&[], 0.0, 0.0), (&[3.0], 3.0, 3.0), (&[4.0, 1.0], 1.0, 1.0), (&[5.0, 1.0, 3.0], 1.0, 3.0)];
        for (samples, min, median) in table {
            let samples: Samples = samples.iter().copied().collect();
            assert_eq!((samples.min(), samples.median(), samples.p99()), (min, median, None), "{samples:?}");
        }
        let hundred: Samples = (1..=100).map(f64::from).collect();
        assert_eq!((hundred.median(), hundred.p99()), (50.0, Some(99.0)));
        let ten: Samples = [10.0; 3].into_iter().collect();
        assert_eq!(hundred.above(&ten), [-9.0, -8.0, -7.0].into_iter().collect());
    }

    #[test]
    fn a_table_is_aligned_and_says_what_is_not_known() {
        let samples: Samples = [10.0, 30.0].into_iter().collect();
        let mut row = Row::new("boot", "ours", "ms", samples.clone()).against(&[5.0].into_iter().collect());
        row.remark = "+5 ms".to_owned();
        let text = table(&[Row::new("boot", "plain QEMU", "ms", samples), row]);
        let expected = "\
bench  what        n   min  median  p99  unit  cpu ms  ratio
boot   plain QEMU  2  10.0    10.0    -  ms         -      -
boot   ours        2  10.0    10.0    -  ms         -   2.00  +5 ms
";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_divided_by_nothing_is_no_ratio() {
        assert_eq!(Row::new("b", "w", "ms", Samples::default()).against(&Samples::default()).ratio, None);
    }
}
