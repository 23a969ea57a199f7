//! HTML text: everything that comes from outside passes through [`escape`].

use std::fmt::Write as _;

/// Text as HTML content or attribute value.
#[must_use]
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// A table; the first column holds row headings. Cells are plain text.
pub(super) struct HtmlTable {
    /// What the table shows.
    pub(super) caption: String,
    /// Column headings.
    pub(super) header: Vec<String>,
    /// Rows of cells; a row that is `true` is set apart.
    pub(super) rows: Vec<(bool, Vec<String>)>,
}

impl HtmlTable {
    /// The table inside a container that scrolls by itself when the page is narrow.
    pub(super) fn html(&self) -> String {
        let caption = escape(&self.caption);
        let mut out = format!("<p class=\"soft\">{caption}</p>\n");
        let _ = writeln!(out, "<div class=\"scroll\" tabindex=\"0\"><table aria-label=\"{caption}\">");
        out.push_str("<thead><tr>");
        for cell in &self.header {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(cell));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for (is_apart, row) in &self.rows {
            out.push_str(if *is_apart { "<tr class=\"apart\">" } else { "<tr>" });
            for (i, cell) in row.iter().enumerate() {
                if i == 0 {
                    let _ = write!(out, "<th scope=\"row\">{}</th>", escape(cell));
                } else {
                    let _ = write!(out, "<td>{}</td>", escape(cell));
                }
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }
}

/// The style sheet: light and dark, readable from 320 pixels up.
pub(super) const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#ffffff;--ink:#1a1a1a;--soft:#595959;--grid:#dddddd;--box:#f5f5f3}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e6e3;--soft:#a9a6a1;--grid:#3a3d42;--box:#1f2226}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.25rem;margin:2.25rem 0 .5rem}
p,li{max-width:46rem}
.soft{color:var(--soft)}
.scroll{overflow-x:auto;border:1px solid var(--grid);border-radius:6px;margin:.75rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .75rem;text-align:right;white-space:nowrap;border-top:1px solid var(--grid)}
thead th{border-top:0}
th:first-child{text-align:left}
thead th{background:var(--box);font-weight:600}
tbody th{font-weight:400}
tr.apart th,tr.apart td{background:var(--box);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem}
figure{margin:0;padding:.75rem;border:1px solid var(--grid);border-radius:6px;min-width:0}
figcaption{font-weight:600;margin-bottom:.25rem}
svg.chart{display:block;width:100%;height:auto;max-width:34rem}
@media (max-width:30rem){figure{padding:.5rem .25rem}th,td{padding:.3rem .5rem}}
svg.chart text{font-family:inherit}
svg.chart [fill=\"#1A1A1A\"]{fill:var(--ink)}
svg.chart [stroke=\"#DDDDDD\"]{stroke:var(--grid)}
svg.chart [stroke=\"#666666\"]{stroke:var(--soft)}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_stays_text() {
        assert_eq!(escape("<b a=\"1\" c='2'>&"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
        let table = HtmlTable {
            caption: "<script>".into(),
            header: vec!["<i>".into()],
            rows: vec![(false, vec!["<u>".into(), "<s>".into()])],
        };
        let html = table.html();
        for tag in ["<script>", "<i>", "<u>", "<s>"] {
            assert!(!html.contains(tag), "{tag}");
        }
    }
}
