//! Metrics in lines: one a metric, one a data point.

use pillion_proto::otlp::metrics::{
    AggregationTemporality, Metric, NumberDataPoint, metric::Data, number_data_point::Value,
};

use super::values::{attributes, quoted};
use super::{Lines, instant, printable, write};

pub(super) fn put(lines: &mut Lines, metric: &Metric) {
    let kind = kind_of(metric);
    if lines.items_left > 0 {
        let (name, unit) = (quoted(&metric.name), printable(&metric.unit, 40));
        write(&mut lines.out, format_args!("    metric {name} {kind} [{unit}]\n"));
    }
    match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.iter().for_each(|point| number(lines, point)),
        Some(Data::Sum(sum)) => sum.data_points.iter().for_each(|point| number(lines, point)),
        Some(Data::Histogram(histogram)) => {
            for point in &histogram.data_points {
                let what = summary(point.count, point.sum, (point.min, point.max));
                let buckets = format!("{} buckets", point.bucket_counts.len());
                one(lines, point.time_unix_nano, &format!("{what} {buckets}"), &attributes(&point.attributes, " "));
            }
        }
        Some(Data::ExponentialHistogram(histogram)) => {
            for point in &histogram.data_points {
                let what = summary(point.count, point.sum, (point.min, point.max));
                let scale = format!("scale={}", point.scale);
                one(lines, point.time_unix_nano, &format!("{what} {scale}"), &attributes(&point.attributes, " "));
            }
        }
        Some(Data::Summary(of)) => {
            for point in &of.data_points {
                let what = summary(point.count, Some(point.sum), (None, None));
                one(lines, point.time_unix_nano, &what, &attributes(&point.attributes, " "));
            }
        }
        None => {}
    }
}

fn kind_of(metric: &Metric) -> String {
    let temporality = |number: i32| {
        let temporality = AggregationTemporality::try_from(number).unwrap_or_default();
        temporality.as_str_name().trim_start_matches("AGGREGATION_TEMPORALITY_").to_lowercase()
    };
    match &metric.data {
        Some(Data::Gauge(_)) => "gauge".to_owned(),
        Some(Data::Sum(sum)) => {
            let monotonic = if sum.is_monotonic { " monotonic" } else { "" };
            format!("sum {}{monotonic}", temporality(sum.aggregation_temporality))
        }
        Some(Data::Histogram(histogram)) => format!("histogram {}", temporality(histogram.aggregation_temporality)),
        Some(Data::ExponentialHistogram(histogram)) => {
            format!("exponential histogram {}", temporality(histogram.aggregation_temporality))
        }
        Some(Data::Summary(_)) => "summary".to_owned(),
        None => "without data".to_owned(),
    }
}

fn number(lines: &mut Lines, point: &NumberDataPoint) {
    let what = match point.value {
        Some(Value::AsInt(value)) => value.to_string(),
        Some(Value::AsDouble(value)) => value.to_string(),
        None => "no value".to_owned(),
    };
    one(lines, point.time_unix_nano, &what, &attributes(&point.attributes, " "));
}

fn one(lines: &mut Lines, at: u64, what: &str, attributes: &str) {
    lines.item(|out| write(out, format_args!("      {} {what}{attributes}\n", instant(at))));
}

fn summary(count: u64, sum: Option<f64>, (min, max): (Option<f64>, Option<f64>)) -> String {
    let mut out = format!("count={count}");
    for (name, value) in [("sum", sum), ("min", min), ("max", max)] {
        if let Some(value) = value {
            write(&mut out, format_args!(" {name}={value}"));
        }
    }
    out
}
