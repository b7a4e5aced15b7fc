//! Draws the state of `shunt top`; the only decision is which columns fit. Tested on ratatui's TestBackend.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table},
};

use super::{
    rates::{DropRow, Overview, Rate, Row},
    sort::SortKey,
    state::{HELP, State},
};
use crate::inspect::statistics::Count;

/// Minimum width of the name of a service port.
const NAME: u16 = 20;
/// `BYTES OUT/s`, and a space.
const FIGURE: u16 = 12;
/// Number of reasons shown.
const DROPS: usize = 4;

/// A column of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Rate(Count),
    Total(Count),
}

/// Columns by priority, for narrow terminals.
const PRIORITY: [Column; 10] = [
    Column::Rate(Count::Flows),
    Column::Rate(Count::BytesIn),
    Column::Rate(Count::BytesOut),
    Column::Rate(Count::Dropped),
    Column::Rate(Count::Refused),
    Column::Rate(Count::PacketsIn),
    Column::Rate(Count::PacketsOut),
    Column::Total(Count::Flows),
    Column::Total(Count::BytesIn),
    Column::Total(Count::BytesOut),
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Rate(count) => SortKey::Rate(count).title(),
            Self::Total(Count::Flows) => "NEW",
            Self::Total(Count::BytesIn) => "BYTES IN",
            Self::Total(Count::BytesOut) => "BYTES OUT",
            Self::Total(count) => count.name(),
        }
    }

    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::Rate(count) => row.rates.get(count),
            Self::Total(count) => row.totals.get(count).map(|total| total as f64),
        }
    }

    /// Sort key: rates in the order of the counts, then totals.
    fn place(self) -> (bool, usize) {
        match self {
            Self::Rate(count) => (false, count as usize),
            Self::Total(count) => (true, count as usize),
        }
    }
}

/// The columns that fit next to the names.
fn columns(width: u16) -> Vec<Column> {
    let room = width.saturating_sub(NAME + 10) / FIGURE;
    let mut columns = PRIORITY[..PRIORITY.len().min(room as usize)].to_vec();
    columns.sort_by_key(|column| column.place());
    columns
}

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, overview: &Overview, state: &mut State, colour: bool) {
    let head = head(overview, state, colour);
    let areas =
        Layout::vertical([Constraint::Length(head.len() as u16), Constraint::Min(1), Constraint::Length(1)]);
    let [top, middle, bottom] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    table(frame, middle, overview, state, colour);
    frame.render_widget(foot(state), bottom);
    if state.help {
        help(frame);
    }
}

fn head(overview: &Overview, state: &State, colour: bool) -> Vec<Line<'static>> {
    let node = &overview.node;
    let mut title = vec!["shunt top".bold(), format!("   every {:?}", state.interval).into()];
    if state.paused {
        title.push("   paused".bold());
    }
    if !state.filter.is_empty() {
        title.push(format!("   only {:?}", state.filter).into());
    }
    let rates = format!(
        "node: {} new/s in packets, {} translated/s at sockets, {} refused/s, {} dropped/s",
        shown(node.flows),
        shown(node.sockets),
        shown(node.refused),
        shown(node.dropped)
    );
    let mut lines = vec![Line::from(title), Line::from(rates), drops(&overview.drops, colour)];
    if !overview.service_stats {
        lines.push(
            Line::from("flows, packets and bytes of Services are not counted: the agent runs with --service-stats-max 0")
                .bold(),
        );
    }
    lines
}

fn drops(rows: &[DropRow], colour: bool) -> Line<'static> {
    if rows.is_empty() {
        return Line::from("no refusals or drops");
    }
    let mut spans = vec![Span::from("ended: ")];
    for (i, row) in rows.iter().take(DROPS).enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let text = format!(
            "{comma}{} {} {}/s ({})",
            row.reason,
            row.device,
            shown(row.rate),
            human(row.rate.total as f64)
        );
        let is_drop_now = !row.refused && row.rate.per_second.is_some_and(|rate| rate > 0.0);
        spans.push(Span::styled(text, alarm(is_drop_now, colour)));
    }
    Line::from(spans)
}

fn table(frame: &mut Frame<'_>, area: Rect, overview: &Overview, state: &mut State, colour: bool) {
    let rows: Vec<&Row> = overview.services.iter().filter(|row| state.shows(row)).take(state.limit).collect();
    state.page = usize::from(area.height.saturating_sub(1)).max(1);
    state.first = state.first.min(rows.len().saturating_sub(state.page));
    let columns = columns(area.width);
    let marked = |key: SortKey, title: &str| {
        let arrow = if state.reversed { '^' } else { 'v' };
        if key == state.sort { format!("{title}{arrow}") } else { title.to_owned() }
    };
    let mut header = vec![Cell::from(marked(SortKey::Service, "SERVICE")), "PROT".into(), "FAM".into()];
    header.extend(columns.iter().map(|column| {
        let title = match column {
            Column::Rate(count) => marked(SortKey::Rate(*count), column.title()),
            Column::Total(_) => column.title().to_owned(),
        };
        right(title, Style::new())
    }));
    let shown_rows = rows.iter().skip(state.first).take(state.page).map(|row| {
        let mut cells = vec![
            Cell::from(&*row.title),
            Cell::from(&*row.protocol),
            Cell::from(row.family.trim_start_matches("IP")),
        ];
        cells.extend(columns.iter().map(|column| {
            let figure = column.of(row);
            let is_drop = *column == Column::Rate(Count::Dropped) && figure.is_some_and(|rate| rate > 0.0);
            right(figure.map_or_else(|| "-".to_owned(), human), alarm(is_drop, colour))
        }));
        TableRow::new(cells)
    });
    let widths = [Constraint::Fill(1), Constraint::Length(5), Constraint::Length(3)]
        .into_iter()
        .chain(columns.iter().map(|_| Constraint::Length(FIGURE - 1)));
    let table = Table::new(shown_rows, widths).header(TableRow::new(header).reversed()).column_spacing(1);
    frame.render_widget(table, area);
}

fn right(text: String, style: Style) -> Cell<'static> {
    Cell::from(Text::from(text).alignment(Alignment::Right)).style(style)
}

fn foot(state: &State) -> Line<'static> {
    if state.typing {
        return Line::from(format!("/{}_", state.filter));
    }
    Line::from("q quit   < > sort   r reverse   / filter   p pause   + - interval   ? help").dim()
}

fn help(frame: &mut Frame<'_>) {
    let lines: Vec<_> = HELP.iter().map(|(keys, what)| Line::from(format!(" {keys:<18}{what} "))).collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0) as u16 + 2;
    let area = frame.area().centered(Constraint::Length(width), Constraint::Length(lines.len() as u16 + 2));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" keys ")), area);
}

fn alarm(is_on: bool, colour: bool) -> Style {
    match (is_on, colour) {
        (true, true) => Style::new().fg(Color::Red),
        (true, false) => Style::new().bold(),
        (false, _) => Style::new(),
    }
}

fn shown(rate: Rate) -> String {
    rate.per_second.map_or_else(|| "-".to_owned(), human)
}

/// Three or four digits, with SI prefixes.
fn human(figure: f64) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    if figure < 9.95 && figure.fract() != 0.0 {
        return format!("{figure:.1}");
    }
    let (mut figure, mut at) = (figure.round(), 0);
    while figure >= 9999.5 && at + 1 < PREFIXES.len() {
        figure /= 1000.0;
        at += 1;
    }
    let digits = usize::from(at > 0 && figure < 99.95);
    format!("{figure:.digits$}{}", PREFIXES[at])
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::{rates::tests::overview, sort, state::tests::state},
        *,
    };

    fn drawn(width: u16, height: u16, overview: &Overview, state: &mut State) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, overview, state, true)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen() {
        let mut overview = overview();
        sort::sort(&mut overview.services, SortKey::Rate(Count::Flows), false);
        let lines = drawn(116, 9, &overview, &mut state());
        assert_eq!(lines[0], "shunt top   every 1s");
        assert_eq!(
            lines[1],
            "node: 35 new/s in packets, 0 translated/s at sockets, 0 refused/s, 3 dropped/s"
        );
        assert_eq!(lines[2], "ended: no_local_endpoints lo 3/s (6), no_backend (sockets) 0/s (1000)");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[3])[..4], ["SERVICE", "PROT", "FAM", "NEW/sv"]);
        let web = ["default/web:http", "TCP", "v4", "10", "100", "100", "1500k", "0", "2", "3"];
        assert_eq!(words(&lines[5]), web);
        assert!(lines[8].starts_with("q quit"), "{lines:#?}");
    }

    #[test]
    fn the_width_selects_the_columns() {
        assert_eq!(columns(30), []);
        assert_eq!(columns(42), [Column::Rate(Count::Flows)]);
        let narrow = columns(80);
        assert!(
            narrow.contains(&Column::Rate(Count::Dropped))
                && !narrow.contains(&Column::Rate(Count::PacketsIn))
        );
        assert_eq!(columns(200).len(), PRIORITY.len());
        assert_eq!(columns(200)[0], Column::Rate(Count::Flows));
        // Any size can be drawn.
        for (width, height) in [(1, 1), (20, 3), (80, 4), (300, 50)] {
            drawn(width, height, &overview(), &mut State { help: true, ..state() });
        }
    }

    #[test]
    fn scrolling_stops_at_the_last_page() {
        let mut state = State { first: usize::MAX, ..state() };
        let lines = drawn(80, 7, &overview(), &mut state);
        assert_eq!((state.page, state.first), (2, 1));
        assert!(lines[5].starts_with("default/api"), "{lines:#?}");
    }

    #[test]
    fn disabled_statistics_are_mentioned() {
        let mut overview = overview();
        overview.service_stats = false;
        let lines = drawn(120, 9, &overview, &mut state());
        assert!(lines[3].contains("--service-stats-max 0"), "{lines:#?}");
    }

    #[test]
    fn filter_and_pause_are_shown() {
        let mut state = State { filter: "WEB".to_owned(), paused: true, typing: true, ..state() };
        let lines = drawn(80, 7, &overview(), &mut state);
        assert_eq!(lines[0], "shunt top   every 1s   paused   only \"WEB\"");
        assert!(
            lines[4].starts_with("default/web") && lines[5].is_empty() && lines[6] == "/WEB_",
            "{lines:#?}"
        );
    }

    #[test]
    fn figures_with_prefixes() {
        let want = [
            (0.0, "0"),
            (0.25, "0.2"),
            (9.99, "10"),
            (1234.0, "1234"),
            (9999.0, "9999"),
            (12_345.0, "12.3k"),
            (1_234_567.0, "1235k"),
            (12_345_678.0, "12.3M"),
            (1e18, "1000P"),
        ];
        for (figure, text) in want {
            assert_eq!(human(figure), text, "{figure}");
        }
    }
}
