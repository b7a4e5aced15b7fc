//! What the user of `shunt top` has chosen: order, filter, place, interval; and what each key does to that. Knows neither
//! the terminal nor the maps.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Options, rates::Row, sort::SortKey};
use crate::inspect::statistics::Count;

/// What `+` and `-` go through.
const INTERVALS: [u64; 9] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// What a key asks of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Draw,
    Quit,
}

#[derive(Clone, Debug)]
pub struct Screen {
    pub sort: SortKey,
    pub reversed: bool,
    pub paused: bool,
    pub help: bool,
    pub interval: Duration,
    /// Of what is shown a service port's title, protocol or family holds this.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// The first row that is shown.
    pub first: usize,
    /// Rows that fit, as last drawn.
    pub page: usize,
    pub limit: usize,
}

impl Screen {
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

    /// Whether a row passes the filter, in whichever case it was typed.
    pub fn shows(&self, row: &Row) -> bool {
        let wanted = self.filter.to_lowercase();
        [&row.title, &row.protocol, row.family].iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    pub fn on_key(&mut self, key: KeyEvent) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Wish::Quit } else { Wish::Draw };
        }
        if self.typing {
            self.on_typed(key.code);
            return Wish::Draw;
        }
        if std::mem::take(&mut self.help) {
            return Wish::Draw;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
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
        Wish::Draw
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
            // Drawing brings it back to the last page.
            KeyCode::End => usize::MAX,
            _ => self.first,
        };
    }

    /// Another order begins with its first; the same column once more changes nothing.
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

/// The column of a letter.
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

/// The keys, for `?`.
pub const HELP: [(&str, &str); 9] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("< > or s", "sort by the next column to the left, to the right"),
    ("a n i o I O f d", "sort by service, new, packets in and out, bytes in and out, refused, dropped"),
    ("r", "the other way around"),
    ("/ TEXT Enter", "only what holds this text; / Esc: all again"),
    ("p, space", "pause"),
    ("+ -", "longer and shorter interval"),
    ("arrows, PgUp PgDn", "scroll; Home and End"),
    ("?", "this"),
];

#[cfg(test)]
pub(super) mod tests {
    use super::{super::rates::tests::overview, *};

    pub fn screen() -> Screen {
        Screen::new(&Options {
            interval: Duration::from_secs(1),
            sort: SortKey::Rate(Count::Flows),
            limit: None,
            service: None,
        })
    }

    fn press(screen: &mut Screen, keys: &str) -> Wish {
        keys.chars().fold(Wish::Draw, |_, key| screen.on_key(KeyCode::Char(key).into()))
    }

    #[test]
    fn ways_out() {
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen().on_key(ctrl_c), Wish::Quit);
        assert_eq!(screen().on_key(KeyCode::Esc.into()), Wish::Quit);
        assert_eq!(press(&mut screen(), "q"), Wish::Quit);
        // In the filter they are letters, and the way out of it.
        let mut screen = screen();
        assert_eq!(press(&mut screen, "/q"), Wish::Draw);
        assert_eq!(screen.on_key(KeyCode::Esc.into()), Wish::Draw);
        assert!(screen.filter.is_empty());
        press(&mut screen, "/q");
        assert_eq!(screen.on_key(ctrl_c), Wish::Quit);
    }

    #[test]
    fn orders() {
        let mut screen = screen();
        press(&mut screen, "s");
        assert_eq!(screen.sort, SortKey::Rate(Count::PacketsIn));
        press(&mut screen, "<<r");
        assert_eq!((screen.sort, screen.reversed), (SortKey::Service, true));
        press(&mut screen, "d");
        assert_eq!((screen.sort, screen.reversed), (SortKey::Rate(Count::Dropped), false));
    }

    #[test]
    fn the_filter_takes_any_case() {
        let mut screen = screen();
        press(&mut screen, "/WEBB");
        screen.on_key(KeyCode::Backspace.into());
        screen.on_key(KeyCode::Enter.into());
        assert!(!screen.typing);
        let rows = overview().services;
        let shown: Vec<_> = rows.iter().filter(|row| screen.shows(row)).map(|row| &*row.name).collect();
        assert_eq!(shown, ["web"]);
        screen.filter = "ipv4".to_owned();
        assert!(rows.iter().all(|row| screen.shows(row)));
    }

    #[test]
    fn intervals_have_ends() {
        let mut screen = screen();
        press(&mut screen, "+");
        assert_eq!(screen.interval, Duration::from_secs(2));
        press(&mut screen, "----------");
        assert_eq!(screen.interval, Duration::from_millis(100));
        screen.interval = Duration::from_secs(3600);
        press(&mut screen, "+");
        assert_eq!(screen.interval, Duration::from_secs(3600));
    }

    #[test]
    fn any_key_ends_help() {
        let mut screen = screen();
        press(&mut screen, "?");
        assert!(screen.help);
        assert_eq!(press(&mut screen, "q"), Wish::Draw);
        assert!(!screen.help);
    }
}
