use std::fmt::Write as _;

use super::figure::Figure;

const WIDTH: f64 = 760.0;
/// Of the names at the left.
const NAMES: f64 = 300.0;
/// Of the numbers at the right.
const NUMBERS: f64 = 130.0;
const ROW: f64 = 20.0;
const HEAD: f64 = 56.0;
const COLOURS: [&str; 4] = ["#2f6f9f", "#b5651d", "#6b8e23", "#8b5a8c"];

/// Draws the ratio of each figure that has one as a bar, as SVG; those of one case have one colour.
pub(super) fn bars(title: &str, figures: &[Figure]) -> String {
    let shown: Vec<_> = figures.iter().filter_map(|figure| Some((figure, figure.ratio?))).collect();
    let mut cases: Vec<&str> = Vec::new();
    for (figure, _) in &shown {
        if !cases.contains(&figure.case.as_str()) {
            cases.push(&figure.case);
        }
    }
    let longest = shown.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    let scale = (WIDTH - NAMES - NUMBERS) / longest;
    let height = HEAD + ROW * shown.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (index, case) in cases.iter().enumerate() {
        let x = 10.0 + index as f64 * (WIDTH - 20.0) / cases.len() as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.0}\" y=\"32\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"41\">{}</text>",
            colour(index),
            x + 14.0,
            escaped(case)
        );
    }
    for (row, (figure, ratio)) in shown.iter().enumerate() {
        let y = HEAD + ROW * row as f64;
        let case = cases.iter().position(|case| *case == figure.case).unwrap_or_default();
        let length = (ratio * scale).max(1.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"14\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{ratio:.2} ({})</text>",
            NAMES - 8.0,
            y + 12.0,
            escaped(&format!("{}, {}", figure.what, figure.quantity)),
            y + 1.0,
            colour(case),
            NAMES + length + 6.0,
            y + 12.0,
            escaped(&figure.to_string())
        );
    }
    // What all are compared with.
    let x = NAMES + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#444\" stroke-dasharray=\"3 3\"/>\n</svg>",
        HEAD - 4.0,
        height - 6.0
    );
    svg
}

fn colour(case: usize) -> &'static str {
    COLOURS[case % COLOURS.len()]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::figure::Unit;
    use super::*;

    #[test]
    fn each_ratio_is_a_bar_and_text_cannot_break_out() {
        let figure = |case: &str, ratio| Figure {
            what: "1 < 2 & \"3\"".to_owned(),
            case: case.to_owned(),
            quantity: "rate".to_owned(),
            value: 1.0,
            unit: Unit::Seconds,
            ratio,
        };
        let svg = bars(
            "a > b",
            &[figure("no mesh", None), figure("orlop", Some(0.5)), figure("ztunnel", Some(2.0))],
        );
        // The background, two of the legend and two bars.
        assert_eq!(svg.matches("<rect").count(), 5);
        assert!(svg.contains("1 &lt; 2 &amp; &quot;3&quot;, rate") && svg.contains("a &gt; b"), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(!svg.contains("no mesh"), "{svg}");
    }
}
