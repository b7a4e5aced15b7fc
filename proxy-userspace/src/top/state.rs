//! The user's choices in `shunt top` (order, filter, scroll position, interval), and the effect of each key on them. Independent
//! of terminal and maps.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Options, rates::Row, sort::SortKey};
use crate::inspect::statistics::Count;

/// The steps of `+` and `-`.
const INTERVALS: [u64; 9] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// The action that a key requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Redraw,
    Quit,
}

#[derive(Clone, Debug)]
pub struct State {
    pub sort: SortKey,
    pub reversed: bool,
    pub paused: bool,
    pub help: bool,
    pub interval: Duration,
    /// Shows only rows whose title, protocol or family contains this text.
    pub filter: String,
    /// The user is typing the filter.
    pub typing: bool,
    /// Index of the first visible row.
    pub first: usize,
    /// Number of visible rows, as last drawn.
    pub page: usize,
    pub limit: usize,
}

impl State {
    pub fn new(options: &Options) -> Self {
        Self {
            sort: options.sort,
            reversed: false,
            paused: false,
            help: false,
            interval: options.interval,
            filter: String::new(),
            typing: false,
            first: 0,
            page: 1,
            limit: options.limit.unwrap_or(usize::MAX),
        }
    }

    /// Whether a row matches the filter, ignoring case.
    pub fn shows(&self, row: &Row) -> bool {
        let wanted = self.filter.to_lowercase();
        [&row.title, &row.protocol, row.family].iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    pub fn on_key(&mut self, key: KeyEvent) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Action::Quit } else { Action::Redraw };
        }
        if self.typing {
            self.on_typed(key.code);
            return Action::Redraw;
        }
        if std::mem::take(&mut self.help) {
            return Action::Redraw;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('+' | '=') => self.longer(),
            KeyCode::Char('-') => self.shorter(),
            KeyCode::Char('s' | '>') | KeyCode::Right => self.sort_by(self.sort.shifted(1)),
            KeyCode::Char('<') | KeyCode::Left => self.sort_by(self.sort.shifted(-1)),
            KeyCode::Char(letter) => {
                if let Some(key) = by_letter(letter) {
                    self.sort_by(key);
                }
            }
            code => self.scroll(code),
        }
        Action::Redraw
    }

    fn on_typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
        self.first = 0;
    }

    fn scroll(&mut self, code: KeyCode) {
        self.first = match code {
            KeyCode::Up => self.first.saturating_sub(1),
            KeyCode::Down => self.first.saturating_add(1),
            KeyCode::PageUp => self.first.saturating_sub(self.page),
            KeyCode::PageDown => self.first.saturating_add(self.page),
            KeyCode::Home => 0,
            // Limited to the last page when drawing.
            KeyCode::End => usize::MAX,
            _ => self.first,
        };
    }

    /// Changes the column and scrolls to the top. Selecting the same column again has no effect.
    fn sort_by(&mut self, key: SortKey) {
        if self.sort != key {
            (self.sort, self.reversed, self.first) = (key, false, 0);
        }
    }

    fn longer(&mut self) {
        let longer = INTERVALS.map(Duration::from_millis).into_iter().find(|it| *it > self.interval);
        self.interval = longer.unwrap_or(self.interval);
    }

    fn shorter(&mut self) {
        let shorter = INTERVALS.map(Duration::from_millis).into_iter().rev().find(|it| *it < self.interval);
        self.interval = shorter.unwrap_or(self.interval);
    }
}

/// The column that a letter selects.
fn by_letter(letter: char) -> Option<SortKey> {
    Some(match letter {
        'a' => SortKey::Service,
        'n' => SortKey::Rate(Count::Flows),
        'i' => SortKey::Rate(Count::PacketsIn),
        'o' => SortKey::Rate(Count::PacketsOut),
        'I' => SortKey::Rate(Count::BytesIn),
        'O' => SortKey::Rate(Count::BytesOut),
        'f' => SortKey::Rate(Count::Refused),
        'd' => SortKey::Rate(Count::Dropped),
        _ => return None,
    })
}

/// The help text.
pub const HELP: [(&str, &str); 9] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("< > or s", "sort by the next column to the left, to the right"),
    ("a n i o I O f d", "sort by service, new, packets in and out, bytes in and out, refused, dropped"),
    ("r", "reverse the order"),
    ("/ TEXT Enter", "show only rows with this text; / Esc: show all"),
    ("p, space", "pause"),
    ("+ -", "longer or shorter interval"),
    ("arrows, PgUp PgDn", "scroll; Home and End"),
    ("?", "this help"),
];

#[cfg(test)]
pub(super) mod tests {
    use super::{super::rates::tests::overview, *};

    pub fn state() -> State {
        State::new(&Options {
            interval: Duration::from_secs(1),
            sort: SortKey::Rate(Count::Flows),
            limit: None,
            service: None,
        })
    }

    fn press(state: &mut State, keys: &str) -> Action {
        keys.chars().fold(Action::Redraw, |_, key| state.on_key(KeyCode::Char(key).into()))
    }

    #[test]
    fn keys_that_quit() {
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state().on_key(ctrl_c), Action::Quit);
        assert_eq!(state().on_key(KeyCode::Esc.into()), Action::Quit);
        assert_eq!(press(&mut state(), "q"), Action::Quit);
        // While typing the filter, q is a letter and Esc leaves the filter.
        let mut state = state();
        assert_eq!(press(&mut state, "/q"), Action::Redraw);
        assert_eq!(state.on_key(KeyCode::Esc.into()), Action::Redraw);
        assert!(state.filter.is_empty());
        press(&mut state, "/q");
        assert_eq!(state.on_key(ctrl_c), Action::Quit);
    }

    #[test]
    fn keys_that_sort() {
        let mut state = state();
        press(&mut state, "s");
        assert_eq!(state.sort, SortKey::Rate(Count::PacketsIn));
        press(&mut state, "<<r");
        assert_eq!((state.sort, state.reversed), (SortKey::Service, true));
        press(&mut state, "d");
        assert_eq!((state.sort, state.reversed), (SortKey::Rate(Count::Dropped), false));
    }

    #[test]
    fn the_filter_ignores_case() {
        let mut state = state();
        press(&mut state, "/WEBB");
        state.on_key(KeyCode::Backspace.into());
        state.on_key(KeyCode::Enter.into());
        assert!(!state.typing);
        let rows = overview().services;
        let shown: Vec<_> = rows.iter().filter(|row| state.shows(row)).map(|row| &*row.name).collect();
        assert_eq!(shown, ["web"]);
        state.filter = "ipv4".to_owned();
        assert!(rows.iter().all(|row| state.shows(row)));
    }

    #[test]
    fn intervals_are_bounded() {
        let mut state = state();
        press(&mut state, "+");
        assert_eq!(state.interval, Duration::from_secs(2));
        press(&mut state, "----------");
        assert_eq!(state.interval, Duration::from_millis(100));
        state.interval = Duration::from_secs(3600);
        press(&mut state, "+");
        assert_eq!(state.interval, Duration::from_secs(3600));
    }

    #[test]
    fn any_key_closes_help() {
        let mut state = state();
        press(&mut state, "?");
        assert!(state.help);
        assert_eq!(press(&mut state, "q"), Action::Redraw);
        assert!(!state.help);
    }
}
