//! Outcomes as SVG drawings.

use std::error::Error;

use plotters::prelude::*;

use crate::model::endpoint::Deployment;
use crate::simulate::outcome::{Interval, SimulationOutcome};

const WIDTH: u32 = 1000;
/// Heights of the two panels of a deployment: replicas and demand above, rejections below.
const HEIGHTS: [u32; 2] = [320, 160];
/// The number of points of a line, which is more than can be distinguished.
const POINTS: usize = 1000;

const READY: RGBColor = RGBColor(0x9e, 0xc1, 0xe6);
const DESIRED: RGBColor = RGBColor(0x1b, 0x4f, 0x8a);
const DEMAND: RGBColor = RGBColor(0xd9, 0x7b, 0x1f);
const REJECTED: RGBColor = RGBColor(0xb7, 0x1c, 0x1c);

/// Draws one panel for each deployment, as SVG.
///
/// # Errors
///
/// When the library cannot draw.
pub(super) fn draw(runs: &[(&Deployment, SimulationOutcome)]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let height = HEIGHTS.iter().sum::<u32>() * u32::try_from(runs.len())?;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (deployment, outcome)) in root.split_evenly((runs.len(), 1)).iter().zip(runs) {
            let (above, below) = area.split_vertically(HEIGHTS[0]);
            let intervals = thinned(&outcome.intervals);
            replicas(&above, deployment, &intervals)?;
            rejections(&below, &intervals)?;
        }
        root.present()?;
    }
    Ok(svg)
}

type Area<'s> = DrawingArea<SVGBackend<'s>, plotters::coord::Shift>;

fn replicas(area: &Area<'_>, deployment: &Deployment, intervals: &[Interval]) -> Result<(), Box<dyn Error>> {
    let each = f64::from(deployment.request_settings.max_concurrent_per_instance.get());
    let most = |interval: &Interval| f64::from(interval.desired.max(interval.ready)).max(interval.demand / each);
    let top = intervals.iter().map(most).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("deployment {}", deployment.name), ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(20)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end(intervals), 0.0..top)?;
    chart.configure_mesh().y_desc("replicas").light_line_style(WHITE).draw()?;
    let ready = steps(intervals, |interval| f64::from(interval.ready));
    chart
        .draw_series(AreaSeries::new(ready, 0.0, READY.mix(0.6)))?
        .label("ready")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 20, y + 5)], READY.filled()));
    let line = |colour: RGBColor| move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2));
    let desired = steps(intervals, |interval| f64::from(interval.desired));
    chart.draw_series(LineSeries::new(desired, DESIRED.stroke_width(2)))?.label("asked for").legend(line(DESIRED));
    let demand = intervals.iter().map(|interval| (minutes(interval), interval.demand / each));
    chart
        .draw_series(LineSeries::new(demand, DEMAND.stroke_width(1)))?
        .label("demand, in replicas at 100 %")
        .legend(line(DEMAND));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn rejections(area: &Area<'_>, intervals: &[Interval]) -> Result<(), Box<dyn Error>> {
    let top = intervals.iter().map(|interval| interval.rejected).max().unwrap_or_default().max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end(intervals), 0.0..top * 1.1)?;
    chart.configure_mesh().x_desc("minutes").y_desc("rejected").light_line_style(WHITE).draw()?;
    let rejected = steps(intervals, |interval| interval.rejected as f64);
    chart.draw_series(AreaSeries::new(rejected, 0.0, REJECTED.mix(0.7)))?;
    Ok(())
}

/// Reduces the intervals to few enough to draw: replicas as at the end of each group, demand and rejections of the
/// whole group.
fn thinned(intervals: &[Interval]) -> Vec<Interval> {
    let chunks = intervals.chunks(intervals.len().div_ceil(POINTS).max(1));
    let one = |chunk: &[Interval]| Interval {
        demand: chunk.iter().map(|interval| interval.demand).sum::<f64>() / chunk.len() as f64,
        rejected: chunk.iter().map(|interval| interval.rejected).sum(),
        ..chunk.last().copied().unwrap_or_default()
    };
    chunks.map(one).collect()
}

/// Draws each value from the end of the previous interval to its own end.
fn steps(intervals: &[Interval], value: impl Fn(&Interval) -> f64) -> Vec<(f64, f64)> {
    let mut since = 0.0;
    let both = intervals.iter().flat_map(|interval| {
        let (from, to) = (since, minutes(interval));
        since = to;
        [(from, value(interval)), (to, value(interval))]
    });
    both.collect()
}

fn minutes(interval: &Interval) -> f64 {
    interval.at.as_secs_f64() / 60.0
}

fn end(intervals: &[Interval]) -> f64 {
    intervals.last().map_or(1.0, minutes)
}
