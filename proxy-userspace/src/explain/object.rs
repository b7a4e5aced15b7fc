//! The embedded object made harmless: nothing in it is pinned, and its globals are those of the programs that run.
//!
//! Both are bytes of the ELF file, so the loader need not know: every global there is, or ever will be, is taken over.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, elf::FileHeader64, read::elf::ElfFile};

use crate::datapath::load::GLOBALS_SECTION;

/// Where the maps are defined, each by a `struct bpf_map_def` of [`MAP_DEF`] bytes whose last word says whether it is
/// to be pinned.
const MAPS_SECTION: &str = "maps";
const MAP_DEF: usize = 28;

/// Why the object cannot stand for the programs that run.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("the embedded eBPF object cannot be read: {0}")]
    Elf(#[from] object::Error),
    #[error("the embedded eBPF object has no section {0}")]
    NoSection(&'static str),
    #[error(
        "the programs that run have {live} bytes of globals and this shunt's have {ours}: they are another version's; \
         ask the shunt that runs"
    )]
    Version { live: usize, ours: usize },
}

type Elf<'a> = ElfFile<'a, FileHeader64<object::Endianness>>;

/// `object` with nothing pinned and with these globals.
pub fn private(object: &[u8], globals: &[u8]) -> Result<Vec<u8>, ObjectError> {
    let elf = Elf::parse(object)?;
    let mut copy = object.to_vec();
    let range = range_of(&elf, GLOBALS_SECTION)?;
    if range.len() != globals.len() {
        return Err(ObjectError::Version { live: globals.len(), ours: range.len() });
    }
    copy[range].copy_from_slice(globals);
    for definition in copy[range_of(&elf, MAPS_SECTION)?].chunks_exact_mut(MAP_DEF) {
        definition[MAP_DEF - 4..].fill(0);
    }
    Ok(copy)
}

/// The value of a global of at most 8 bytes; `None` when there is none of this name.
pub fn global(object: &[u8], globals: &[u8], name: &str) -> Result<Option<u64>, ObjectError> {
    let elf = Elf::parse(object)?;
    let Some(section) = elf.section_by_name(GLOBALS_SECTION) else {
        return Err(ObjectError::NoSection(GLOBALS_SECTION));
    };
    let symbol = elf.symbols().find(|symbol| {
        symbol.section_index() == Some(section.index()) && symbol.name() == Ok(name) && symbol.size() <= 8
    });
    Ok(symbol.and_then(|symbol| {
        let at = symbol.address() as usize;
        let bytes = globals.get(at..at + symbol.size() as usize)?;
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    }))
}

fn range_of(elf: &Elf<'_>, name: &'static str) -> Result<std::ops::Range<usize>, ObjectError> {
    let range = elf.section_by_name(name).and_then(|section| section.file_range());
    let (start, len) = range.ok_or(ObjectError::NoSection(name))?;
    Ok(start as usize..(start + len) as usize)
}

#[cfg(test)]
mod tests {
    use aya_obj::maps::PinningType;

    use super::*;
    use crate::datapath::OBJECT;

    fn own_globals() -> Vec<u8> {
        let elf = Elf::parse(OBJECT).unwrap();
        OBJECT[range_of(&elf, GLOBALS_SECTION).unwrap()].to_vec()
    }

    #[test]
    fn nothing_is_pinned_and_the_rest_is_the_same() {
        let copy = private(OBJECT, &own_globals()).unwrap();
        let (copy, object) =
            (aya_obj::Object::parse(&copy).unwrap(), aya_obj::Object::parse(OBJECT).unwrap());
        for name in proxy_common::map::ALL {
            let (ours, theirs) = (&copy.maps[name], &object.maps[name]);
            assert_eq!(
                (ours.pinning(), theirs.pinning()),
                (PinningType::None, PinningType::ByName),
                "{name}"
            );
            let layout = |map: &aya_obj::Map| {
                (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags())
            };
            assert_eq!(layout(ours), layout(theirs), "{name}");
        }
    }

    #[test]
    fn globals_are_found_by_name_and_taken_over() {
        let mut globals = own_globals();
        assert_eq!(global(OBJECT, &globals, "HALF_OPEN_MAX").unwrap(), Some(32_768));
        assert_eq!(global(OBJECT, &globals, "NO_SUCH_GLOBAL").unwrap(), None);
        let at = globals.windows(4).position(|word| word == 32_768u32.to_ne_bytes()).unwrap();
        globals[at..at + 4].copy_from_slice(&77u32.to_ne_bytes());
        let copy = private(OBJECT, &globals).unwrap();
        let elf = Elf::parse(&*copy).unwrap();
        let taken = &copy[range_of(&elf, GLOBALS_SECTION).unwrap()];
        assert_eq!(global(OBJECT, taken, "HALF_OPEN_MAX").unwrap(), Some(77));
    }

    #[test]
    fn another_versions_globals_are_refused() {
        assert!(matches!(private(OBJECT, &[0; 3]), Err(ObjectError::Version { live: 3, .. })));
    }
}
